"""Where recordings lie, and what their folders say of them: LibriSpeech, Speech Commands, a listed corpus, any tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bitquant.data.audio import SUFFIXES

from .manifest import MANIFEST

VALIDATION, TESTING = "validation_list.txt", "testing_list.txt"


@dataclass
class Recording:
    """A file that was found; ``split`` None leaves the choice to a hash of the id."""

    id: str
    file: Path
    split: str | None = None
    speaker: str | None = None
    text: str | None = None
    phones: list | None = None


def find_recordings(root: Path) -> tuple[str, list[Recording]]:
    """Name of the layout, and every wav, flac and ogg file below a folder, in the order of their names.

    Raises:
        ValueError: no folder, or nothing in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    if (root / MANIFEST).is_file():
        name, found = "listed", listed(root)
    elif (root / VALIDATION).is_file():
        name, found = "Speech Commands", speech_commands(root)
    elif next(root.rglob("*.trans.txt"), None):
        name, found = "LibriSpeech", librispeech(root)
    else:
        name, found = "any tree", tree(root)
    recordings = sorted(found, key=lambda recording: recording.id)
    if not recordings:
        raise ValueError(f"{root} holds no recordings ({', '.join(SUFFIXES)})")
    return name, recordings


def listed(root: Path) -> Iterator[Recording]:
    """A folder with a ``manifest.jsonl``, as ``fetch_speech`` and ``synthesize`` write it."""
    for number, line in enumerate((root / MANIFEST).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            path = row["path"]
            if not isinstance(path, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{root / MANIFEST}, line {number}, has no path") from None
        yield Recording(path.rpartition(".")[0], root / path, None, row.get("speaker"), row.get("text"),
                        row.get("phones"))  # fmt: skip


def speech_commands(root: Path) -> Iterator[Recording]:
    """``WORD/SPEAKER_nohash_N.wav`` with lists of the held-out and test files; background noise is left out."""
    splits = {}
    for file, split in ((VALIDATION, "valid"), (TESTING, "test")):
        lines = (root / file).read_text(encoding="utf-8").split() if (root / file).is_file() else []
        splits |= dict.fromkeys(lines, split)
    for recording in tree(root):
        word, _, name = recording.id.rpartition("/")
        if word.startswith("_"):
            continue
        recording.split = splits.get(recording.file.relative_to(root).as_posix(), "train")
        recording.speaker, recording.text = name.partition("_nohash_")[0], word
        yield recording


def librispeech(root: Path) -> Iterator[Recording]:
    """``SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-N.flac`` with transcripts beside; dev is held out, test not used."""

    @cache
    def texts(folder: Path) -> dict[str, str]:
        lines = [line for file in folder.glob("*.trans.txt") for line in file.read_text("utf-8").splitlines()]
        return dict(line.split(" ", 1) for line in lines if " " in line)

    for recording in tree(root):
        folders = (root.name, *recording.file.relative_to(root).parts)
        known = (("train", "train"), ("dev", "valid"), ("test", "test"))
        found = [split for part in folders for prefix, split in known if part.startswith(prefix)]
        recording.split = found[-1] if found else None
        recording.speaker = recording.file.name.partition("-")[0]
        recording.text = texts(recording.file.parent).get(recording.file.stem)
        yield recording


def tree(root: Path) -> Iterator[Recording]:
    """Every recording, named by its path."""
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield Recording(file.relative_to(root).with_suffix("").as_posix(), file)
