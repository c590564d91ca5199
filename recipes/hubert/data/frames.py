"""Samples at 16 kHz and frames of the model, which come every 320 samples and see 400."""

from __future__ import annotations

from ..front_end import RECEPTIVE_FIELD

STRIDE = 320


def frames_of(samples: int) -> int:
    """Frames of a recording."""
    return max(0, (samples - RECEPTIVE_FIELD) // STRIDE + 1)


def samples_of(frames: int) -> int:
    """Samples that so many frames see, no more."""
    return (frames - 1) * STRIDE + RECEPTIVE_FIELD
