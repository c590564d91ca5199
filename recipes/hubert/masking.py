"""Which frames are masked in pre-training (hubert.md 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def span_mask(lengths: Tensor | list[int], frames: int, *, probability: float = 0.8, span: int = 10,
              min_spans: int = 2, generator: torch.Generator | None = None) -> Tensor:
    """Spans of masked frames, overlaps allowed, equally many masked frames in every utterance of the batch.

    Args:
        lengths: int (B,), valid frames of each utterance. frames: T of the batch.
        probability: share of frames covered if spans did not overlap.

    Returns:
        bool (B, frames) on the CPU, True for masked frames, all of them valid ones.

    Raises:
        ValueError: an utterance too short to keep one frame unmasked.
    """
    rows = []
    for length in map(int, lengths):
        starts = length - span
        if starts < 1:
            raise ValueError(f"an utterance of {length} frames is too short to mask spans of {span}")
        wanted = int(probability * length / span + torch.rand((), generator=generator).item())
        count = min(max(min_spans, wanted), starts)
        first = torch.randperm(starts, generator=generator)[:count]
        row = torch.zeros(frames, dtype=torch.bool)
        row[(first[:, None] + torch.arange(span)).flatten()] = True
        if bool(row[:length].all()):
            raise ValueError(f"every frame of an utterance of {length} frames would be masked; lower the probability")
        rows.append(row)
    fewest = min(int(row.sum()) for row in rows)
    for row in rows:
        masked = row.nonzero().flatten()
        order = torch.randperm(len(masked), generator=generator)
        row[masked[order[fewest:]]] = False
    return torch.stack(rows)
