"""Masked prediction in numbers: how many bits, how often right."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from ..data.batches import MicroBatch
from ..data.manifest import RATE
from ..pretraining import FEATURE_PENALTY, PretrainingOutput
from .workers import Workers

BITS = 1 / math.log(2)


class Score(NamedTuple):
    """Over all workers, per masked frame.

    Args:
        loss: cross-entropy in bits. accuracy: share predicted right. masked: how many. penalty: mean squared feature.
        seconds: of audio. norm: of the averaged gradient, before it is clipped; 0 where there is none.
    """

    loss: float
    accuracy: float
    masked: int
    penalty: float
    seconds: float
    norm: float = 0.0


def predict(model: nn.Module, batch: MicroBatch, device: torch.device, precision: str) -> PretrainingOutput:
    """Masked prediction of a micro-batch."""
    waves, mask, labels = (t.to(device, non_blocking=True) for t in (batch.waves, batch.mask, batch.labels))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return model(waves, None, mask, (labels,))


def total(outputs: Iterable[tuple[PretrainingOutput, MicroBatch]], workers: Workers) -> Score:
    """The score of some micro-batches, those of all workers together."""
    sums = [0.0] * 5
    for output, batch in outputs:
        masked, penalty = int(output.masked), output.penalty.item()
        entropy = output.loss.item() - FEATURE_PENALTY * penalty * masked
        values = (entropy, int(output.correct), masked, penalty * masked, batch.waves.numel() / RATE)
        sums = [a + b for a, b in zip(sums, values, strict=True)]
    entropy, correct, masked, penalty, seconds = workers.sum(*sums)
    return Score(entropy / masked * BITS, correct / masked, int(masked), penalty / masked, seconds)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[MicroBatch, bool]], workers: Workers, precision: str) -> Score:
    """The score without dropout.

    Args:
        batches: with a flag, whether they count; every worker needs equally many, as forward passes go together.
    """
    model.eval()
    outputs = [(predict(model, batch, workers.device, precision), batch, counts) for batch, counts in batches]
    return total([(output, batch) for output, batch, counts in outputs if counts], workers)
