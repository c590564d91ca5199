"""Micro-batches: utterances of like length, cut to the shortest, with labels and a mask (hubert.md 1.4, 1.5, 1.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..masking import span_mask
from ..targets.labels import Targets
from .frames import frames_of, samples_of
from .manifest import RATE, Utterance


@dataclass(frozen=True)
class Batching:
    """
    Args:
        min_seconds: shorter utterances are left out. max_seconds: of longer ones a random part is taken.
        batch_seconds: most audio in a micro-batch, what one GPU takes at a time.
        bucket_seconds: utterances whose lengths differ by less may share a micro-batch.
        mask_probability, mask_span, min_spans: as for ``span_mask``.
    """

    min_seconds: float = 2.0
    max_seconds: float = 15.625
    batch_seconds: float = 36.5
    bucket_seconds: float = 0.5
    mask_probability: float = 0.8
    mask_span: int = 10
    min_spans: int = 2

    def __post_init__(self):
        if frames_of(int(self.min_seconds * RATE)) <= self.mask_span * self.min_spans:
            raise ValueError(
                f"min_seconds = {self.min_seconds} leaves no frame beside {self.min_spans} masked spans of "
                f"{self.mask_span} frames of 20 ms; raise it"
            )
        if not self.min_seconds <= self.max_seconds <= self.batch_seconds:
            raise ValueError(
                "lengths must rise from min_seconds over max_seconds to batch_seconds; got "
                f"{self.min_seconds}, {self.max_seconds} and {self.batch_seconds}"
            )


class MicroBatch(NamedTuple):
    """
    Args:
        waves: float32 (B, N), no padding. labels: int64 (B, T), or None where there are none.
        mask: bool (B, T), equally many in every row.
        ids: of the utterances.
    """

    waves: Tensor
    labels: Tensor | None
    mask: Tensor
    ids: list[str]


class MicroBatches(Dataset):
    """An endless sequence of micro-batches; the n-th one, with its crops and its mask, depends on the seed alone.

    Every epoch shuffles within buckets of like length, cuts buckets into micro-batches, and shuffles those.

    Args:
        utterances: of one split. targets: of the whole manifest; None for audio without labels.

    Raises:
        ValueError: no utterance is long enough.
    """

    def __init__(self, utterances: list[Utterance], targets: Targets | None, settings: Batching, *, seed: int):
        self.targets, self.settings, self.seed = targets, settings, seed
        shortest, longest = int(settings.min_seconds * RATE), int(settings.max_seconds * RATE)
        self.utterances = [u for u in utterances if u.samples >= shortest]
        if not self.utterances:
            raise ValueError(f"none of {len(utterances)} utterances lasts {settings.min_seconds} s (min_seconds)")
        self._longest, budget = longest, settings.batch_seconds * RATE
        lengths = np.minimum([u.samples for u in self.utterances], longest)
        buckets = ((lengths - shortest) / (settings.bucket_seconds * RATE)).astype(np.int64)
        self._buckets = []
        for bucket in np.unique(buckets):
            members = np.flatnonzero(buckets == bucket)
            self._buckets.append((members, int(budget // lengths[members].max())))
        self._epoch = (-1, [])

    def __len__(self) -> int:
        """Micro-batches of one epoch."""
        return sum(-(-len(members) // size) for members, size in self._buckets)

    def __getitem__(self, index: int) -> MicroBatch:
        epoch, number = divmod(index, len(self))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._plan(np.random.default_rng([self.seed, epoch])))
        return self._make(self._epoch[1][number], np.random.default_rng([self.seed, epoch, number]))

    def _plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        parts = []
        for members, size in self._buckets:
            order = rng.permutation(members)
            parts += [order[i : i + size] for i in range(0, len(order), size)]
        return [parts[i] for i in rng.permutation(len(parts))]

    def _make(self, members: np.ndarray, rng: np.random.Generator) -> MicroBatch:
        chosen = [self.utterances[i] for i in members]
        samples = min(self._longest, *(u.samples for u in chosen))
        starts = [int(rng.integers(u.samples - samples + 1)) for u in chosen]
        pairs = list(zip(chosen, starts, strict=True))
        frames, labels = frames_of(samples), None
        if self.targets is not None:
            # labels may end a frame early: then so does the audio
            frames = min(frames, *(self.targets.frames(u, start, samples) for u, start in pairs))
            labels = torch.from_numpy(np.stack([self.targets.part(u, start, frames) for u, start in pairs]))
        if frames < frames_of(samples):
            samples = samples_of(frames)
        s = self.settings
        mask = span_mask(
            [frames] * len(chosen), frames, probability=s.mask_probability, span=s.mask_span, min_spans=s.min_spans,
            generator=torch.Generator().manual_seed(int(rng.integers(2**62))),
        )  # fmt: skip
        return MicroBatch(
            torch.from_numpy(np.stack([u.read(start, samples) for u, start in pairs])),
            labels,
            mask,
            [u.id for u in chosen],
        )
