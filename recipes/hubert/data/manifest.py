"""The manifest of a data directory: one line of JSON an utterance."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from bitquant.atomic import replacing_file
from bitquant.data.audio import read_audio

RATE = 16_000
MANIFEST = "manifest.jsonl"
SPLITS = ("train", "valid", "test")
_SLACK = 160  # samples by which resampling may differ from the length in the header: 10 ms


@dataclass(frozen=True)
class Utterance:
    """
    Args:
        id: unique in its data directory. file: the recording. samples: its length at 16 kHz.
        split: ``"train"``, ``"valid"`` (held out) or ``"test"`` (not touched here).
        speaker, text: None where nobody knows.
        phones: (seconds at which it starts, symbol) of every phone, for synthetic speech; None otherwise.
    """

    id: str
    file: Path
    samples: int
    split: str = "train"
    speaker: str | None = None
    text: str | None = None
    phones: tuple[tuple[float, str], ...] | None = None

    @property
    def seconds(self) -> float:
        return self.samples / RATE

    def read(self, start: int = 0, samples: int | None = None) -> np.ndarray:
        """Part of the recording, by default all of it: float32 (samples,) at 16 kHz, full scale 1.

        Raises:
            ValueError: the file is shorter than when the manifest was made.
        """
        wanted = self.samples - start if samples is None else samples
        # half a sample more, so that rounding down to the file's own samples cannot take one less
        whole = start == 0 and samples is None
        wave = read_audio(self.file, RATE, start=(start + 0.5) / RATE if start else 0.0,
                          seconds=None if whole else wanted / RATE)  # fmt: skip
        if len(wave) < wanted - _SLACK:
            raise ValueError(f"{self.file} has changed: it is shorter than its manifest says; prepare it again")
        return np.pad(wave[:wanted], (0, max(0, wanted - len(wave))))


def write_manifest(directory: Path, utterances: list[Utterance]) -> Path:
    """``directory/manifest.jsonl``, whole or not at all; paths in it are relative to the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / MANIFEST
    with replacing_file(file) as fresh, open(fresh, "w", encoding="utf-8") as stream:
        for utterance in utterances:
            row = dataclasses.asdict(utterance)
            row["file"] = os.path.relpath(utterance.file, directory.resolve())
            stream.write(json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False) + "\n")
    return file


def read_manifest(directory: str | Path) -> list[Utterance]:
    """All utterances of a data directory, in the manifest's order.

    Raises:
        ValueError: there is no manifest, or a line of it is damaged.
    """
    directory = Path(directory).resolve()
    file = directory / MANIFEST
    if not file.is_file():
        raise ValueError(f"{directory} holds no {MANIFEST}: make it with python -m recipes.hubert.prepare")
    utterances = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            row["file"] = Path(os.path.normpath(directory / row["file"]))
            row["phones"] = tuple((float(t), str(p)) for t, p in row["phones"]) if row.get("phones") else None
            utterances.append(Utterance(**row))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}, line {number}, is no utterance: {error}") from None
    if not utterances:
        raise ValueError(f"{file} is empty")
    return utterances


def digest(utterances: list[Utterance]) -> str:
    """Short hex digest of what labels depend on: which utterances, how long, in which split."""
    hasher = blake2b(digest_size=8)
    for utterance in utterances:
        hasher.update(f"{utterance.id}\t{utterance.samples}\t{utterance.split}\n".encode(errors="surrogatepass"))
    return hasher.hexdigest()
