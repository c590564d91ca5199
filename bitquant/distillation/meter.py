"""What a training run tells while it goes on: loss, speed, time left, and how many weight signs flip."""

from __future__ import annotations

import time

from torch import Tensor, nn

from bitquant.nn.weights import QuantizedLayer

FLIP_EVERY = 10  # steps between two counts of flipped weight signs


class Meter:
    """One dict of numbers a step, of one stage of training.

    Args:
        student: the model that trains.
        stage: its name, such as ``w1a1``.
        first, steps: the step training goes on from (0 for a new run) and the stage's last.
    """

    def __init__(self, student: nn.Module, stage: str, first: int, steps: int):
        self.layers = [m for m in student.modules() if isinstance(m, QuantizedLayer) and m.weight_quantizer.bits == 1]
        self.signs = self._signs()
        self.stage, self.first, self.steps = stage, first, steps
        self.tokens, self.flip_ratio, self.start = 0, 0.0, time.perf_counter()

    def _signs(self) -> list[Tensor]:
        return [layer.weight_quantizer.signs(layer.weight) for layer in self.layers]

    def update(self, step: int, loss: float, tokens: int) -> dict[str, float | str]:
        """stage, step, steps, loss, flip_ratio (share of weight signs flipped a step), tokens_per_s, eta_s."""
        if (step - self.first) % FLIP_EVERY == 0:
            before, self.signs = self.signs, self._signs()
            flips = sum(int((a != b).sum()) for a, b in zip(before, self.signs, strict=True))
            self.flip_ratio = flips / max(1, sum(s.numel() for s in self.signs)) / FLIP_EVERY
        self.tokens += tokens
        elapsed = time.perf_counter() - self.start
        return {
            "stage": self.stage,
            "step": step,
            "steps": self.steps,
            "loss": loss,
            "flip_ratio": self.flip_ratio,
            "tokens_per_s": self.tokens / elapsed,
            "eta_s": elapsed / (step - self.first) * (self.steps - step),
        }
