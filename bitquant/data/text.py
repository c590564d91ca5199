"""Sentences from plain text files."""

import re

from bitquant.data.kind import check_path, files_below

SUFFIXES = (".txt", ".text", ".md", ".rst")

_ABBREVIATION = re.compile(
    r"(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|cf|fig|no|vol|pp?|approx|inc|ltd|co|al)\.", re.IGNORECASE
)
# tried only where a run of marks begins: anywhere in it, a long run would be read again for each of its marks
_BOUNDARY = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]]*\s+|[。！？]+[」』”]*\s*")
_OPENERS = "\"'“‘«([¿¡"
_FIRST = re.compile(rf"[{re.escape(_OPENERS)}]*(.?)", re.DOTALL)


def read_text(path):
    """Reads one text file, or every text file below a folder in name order, and returns its sentences.

    Args:
        path (str or Path): a UTF-8 file of any suffix, or a folder searched for ``.txt``, ``.text``, ``.md``, ``.rst``.

    Returns:
        list[str]: sentences in file order, white space collapsed; repetitions are kept.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: it is a pipe or device, a file is not UTF-8 text, or there is no sentence in it.
    """
    path = check_path(path)
    files = files_below(path, SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"folder {path} holds no text file ({', '.join(SUFFIXES)})")
    sentences = [s for file in files for block in _blocks(_decode(file)) for s in split_sentences(block)]
    if not sentences:
        raise ValueError(f"{path} holds no sentence: no line with a letter in it")
    return sentences


def split_sentences(text):
    """Splits running text after sentence punctuation; keeps abbreviations and initials together.

    Args:
        text (str): one paragraph; line breaks count as spaces.

    Returns:
        list[str]: sentences that contain at least one letter.
    """
    # in a time linear in its length, whatever it holds: no step looks further than the words around a boundary
    text = " ".join(text.split())
    sentences, start = [], 0
    for match in _BOUNDARY.finditer(text):
        if _ends_sentence(text, start, match):
            sentences.append(text[start : match.end()].strip())
            start = match.end()
    sentences.append(text[start:].strip())
    return [s for s in sentences if any(c.isalpha() for c in s)]


def _ends_sentence(text, start, match):
    if match.group()[0] in "。！？":
        return True
    following = _FIRST.match(text, match.end())[1]
    if following.islower():
        return False
    space = text.rfind(" ", start, match.start())
    last_word = text[max(start, space + 1) : match.start() + 1].lstrip(_OPENERS)
    initial = len(last_word) == 2 and last_word[0].isupper()
    return not (match.group()[0] == "." and (initial or _ABBREVIATION.fullmatch(last_word)))


def _blocks(text):
    """Paragraphs to split: lines of hard-wrapped prose are joined, any other line stands alone."""
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        widest = max(map(len, lines), default=0)
        wrapped = 40 <= widest <= 120 and all(len(line) >= 0.7 * widest for line in lines[:-1])
        yield from [" ".join(lines)] if wrapped else lines


def _decode(file):
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: bad byte at offset {error.start}") from None
    except MemoryError:
        raise ValueError(f"{file} does not fit into memory") from None
    if "\0" in text:
        raise ValueError(f"{file} is a binary file, not text")
    return text
