"""Labels on disk: one array for all utterances, mapped rather than read, and what they are labels of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bitquant.atomic import replacing_file
from bitquant.json_object import read_object

from ..data.frames import STRIDE, frames_of
from ..data.manifest import RATE, Utterance, digest

LABELS, LENGTHS, FACTS = "labels.npy", "lengths.npy", "targets.json"
TOLERANCE = 0.1  # seconds by which labels may be longer or shorter than their recording


class Targets:
    """The labels of a data directory.

    Args:
        directory: as ``make_targets`` writes it.
        utterances: those of the manifest, in its order.
        shuffle: seed of a permutation of all labels, for a control in which there is nothing to learn but how frequent
            each label is.

    Raises:
        ValueError: no targets, made for another manifest, or labels that do not fit the recordings.
    """

    def __init__(self, directory: str | Path, utterances: list[Utterance], *, shuffle: int | None = None):
        directory = Path(directory)
        if not (directory / FACTS).is_file():
            raise ValueError(f"{directory} holds no targets: make them with python -m recipes.hubert.targets")
        self.facts = read_object(directory / FACTS)
        if self.facts.get("manifest") != digest(utterances):
            raise ValueError(f"{directory} was made for another manifest: remove it and make the targets again")
        self.label_rate, self.clusters = self.facts["label_rate"], self.facts["clusters"]
        self._labels = _mapped(directory / LABELS)
        if shuffle is not None:
            self._labels = np.random.default_rng(shuffle).permutation(self._labels)
        self._lengths = np.array(_mapped(directory / LENGTHS))
        check(utterances, self._lengths, self.label_rate)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        self._index = {utterance.id: number for number, utterance in enumerate(utterances)}
        if self._starts[-1] != len(self._labels):
            raise ValueError(f"{directory} is damaged: {len(self._labels)} labels where {self._starts[-1]} should be")

    @property
    def ratio(self) -> float:
        """Labels a frame of the model."""
        return self.label_rate * STRIDE / RATE

    def of(self, utterance: Utterance) -> np.ndarray:
        """All labels of an utterance, at ``label_rate``."""
        number = self._index[utterance.id]
        return self._labels[self._starts[number] : self._starts[number + 1]]

    def frames(self, utterance: Utterance, start: int, samples: int) -> int:
        """Frames of the part ``[start, start + samples)`` that have a label."""
        left = int(self._lengths[self._index[utterance.id]]) - self._first(start)
        return min(frames_of(samples), int(left / self.ratio))

    def part(self, utterance: Utterance, start: int, frames: int) -> np.ndarray:
        """Labels of ``frames`` frames of the model from sample ``start`` on, int64: frame i has label
        ``floor(i * ratio)`` of those from ``round(start * label_rate / 16000)`` on."""
        index = self._first(start) + (np.arange(frames) * self.ratio).astype(np.int64)
        return self.of(utterance)[index].astype(np.int64)

    def entropy(self, utterances: list[Utterance]) -> float:
        """Bits, of how frequent each label is among the frames of some utterances: what a model can do without
        looking."""
        counts = np.zeros(self.clusters, np.int64)
        for utterance in utterances:
            labels = self.part(utterance, 0, self.frames(utterance, 0, utterance.samples))
            counts += np.bincount(labels, minlength=self.clusters)
        return entropy(counts)

    def _first(self, start: int) -> int:
        return round(start * self.label_rate / RATE)


def _mapped(file: Path) -> np.ndarray:
    """An array on disk, which holds as many values as its header says; ValueError when it is none of whole numbers."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"{file} is damaged: it is no list of whole numbers")
    return found


def check(utterances: list[Utterance], lengths: np.ndarray, label_rate: int) -> None:
    """ValueError unless every utterance has as many labels as its length asks for, within 0.1 s."""
    if len(lengths) != len(utterances):
        raise ValueError(f"there are labels of {len(lengths)} utterances and {len(utterances)} utterances")
    for utterance, length in zip(utterances, lengths, strict=True):
        if abs(length / label_rate - utterance.seconds) > TOLERANCE:
            raise ValueError(
                f"{utterance.id} lasts {utterance.seconds:.2f} s and has {length} labels, at {label_rate} a second "
                f"those of {length / label_rate:.2f} s: are they {length / utterance.seconds:.0f} a second?"
            )


def entropy(counts: np.ndarray) -> float:
    """Bits, of a distribution given by counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def write_facts(directory: Path, facts: dict) -> None:
    with replacing_file(directory / FACTS) as fresh:  # that it is there says that the targets are whole
        fresh.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
