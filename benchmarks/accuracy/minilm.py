"""The sentence encoder MiniLM, scored on text that no training here sees.

Training takes the sentences that Python itself carries and, from Debian's packages ``wordnet-base`` and ``fortunes``,
what is not scored. Scored are how often a noun's nearest gloss, of all that are scored, is its own, and how often a
text's seven nearest others have its topic (leave one out).
"""

import random
import re
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bitquant.data import Sentences
from bitquant.demo import WORDNET, demo_model, python_sentences
from bitquant.fidelity import outputs
from bitquant.sources import Source, open_source

FORTUNES = Path("/usr/share/games/fortunes")
NEIGHBOURS = 7
NOUNS, TEXTS = {"test": 1000, "dev": 500}, {"test": 2000, "dev": 1000}
WORDS = range(8, 81)  # of a fortune
FIDELITY = 200  # sentences on which outputs are compared, beside the two measures
RETRIEVAL, TOPICS = "WordNet noun to gloss, R@1", "fortunes topic, 7 nearest"


def source() -> Source:
    """The float encoder."""
    return open_source(str(demo_model()))


def training_data(source: Source, max_length: int = 128) -> Sentences:
    """Sentences of Python's reference and docstrings, nouns, glosses and fortunes, cut after ``max_length`` tokens."""
    nouns, topics = parts(noun_glosses(), NOUNS)["train"], parts(topic_texts(), TEXTS)["train"]
    texts = [text for pair in nouns for text in pair] + [text for _, text in topics]
    data = Sentences(python_sentences() + texts, source, max_length=max_length)
    data.most_held_out = FIDELITY
    return data


def parts(pairs: list[tuple[str, str]], counts: dict[str, int]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of a word and a text by use: as many as ``counts`` says, and ``train``, whose texts are in none of them."""
    found = {}
    for part, count in counts.items():
        found[part] = random.Random(0).sample(pairs, min(count, len(pairs)))
        taken = {text for _, text in found[part]}
        pairs = [pair for pair in pairs if pair[1] not in taken]
    return {**found, "train": pairs}


def score(source: Source, models: dict[str, nn.Module], part: str = "test") -> dict[str, dict[str, float]]:
    """Both measures of several encoders: ``{measure: {name: share right, 0 to 1}}``; ``part`` is a key of ``NOUNS``.

    Raises:
        FileNotFoundError: a package is not installed.
    """
    nouns, glosses = zip(*parts(noun_glosses(), NOUNS)[part], strict=True)
    topics, texts = zip(*parts(topic_texts(), TEXTS)[part], strict=True)
    data, measured = Sentences([], source), {RETRIEVAL: {}, TOPICS: {}}

    def embed(model: nn.Module, texts: tuple[str, ...]) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = outputs(model, data.batches([texts[i] for i in order], batch_size=32))["embeddings"]
        return F.normalize(found[torch.tensor(order).argsort()], dim=1)

    for name, model in models.items():
        measured[RETRIEVAL][name] = retrieval(embed(model, nouns), embed(model, glosses))
        measured[TOPICS][name] = nearest_topic(embed(model, texts), topics)
    return measured


def retrieval(queries: torch.Tensor, documents: torch.Tensor) -> float:
    """Share of queries (N, D) whose nearest document (N, D), rows of length 1, is that of the same row."""
    nearest = (queries @ documents.T).argmax(1)
    return (nearest == torch.arange(len(queries))).float().mean().item()


def nearest_topic(embeddings: torch.Tensor, topics: tuple[str, ...]) -> float:
    """Share of texts whose most common topic among the 7 nearest other texts is theirs; the nearest decides a tie."""
    similarity = embeddings @ embeddings.T
    nearest = similarity.fill_diagonal_(-torch.inf).topk(NEIGHBOURS, dim=1).indices.tolist()
    votes = [Counter(topics[j] for j in row).most_common(1)[0][0] for row in nearest]
    return sum(vote == topic for vote, topic in zip(votes, topics, strict=True)) / len(topics)


def noun_glosses() -> list[tuple[str, str]]:
    """(first word, definition without examples) of every noun of WordNet whose definition does not name it."""
    _check(WORDNET, "wordnet-base")
    pairs = {}
    for line in (WORDNET / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, text = line.partition("|")
        noun, gloss = fields.split(" ")[4].replace("_", " ").lower(), re.split(r'; "', text)[0].strip()
        if noun.split()[0] not in gloss.lower():
            pairs.setdefault(noun, gloss)
    return sorted(pairs.items())


def topic_texts() -> list[tuple[str, str]]:
    """(topic, text) of every fortune of 8 to 80 words; each file is a topic."""
    _check(FORTUNES, "fortunes")
    found = {}
    for file in sorted(file for file in FORTUNES.iterdir() if file.is_file() and not file.suffix):
        for text in re.split(r"\n%\n", file.read_text(encoding="utf-8", errors="replace")):
            text = " ".join(text.split())
            if len(text.split()) in WORDS:
                found.setdefault(text, file.name)
    return [(topic, text) for text, topic in found.items()]


def _check(folder: Path, package: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: install Debian's package {package}")
