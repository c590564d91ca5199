"""``distill``: train a 1-bit student to do what its float teacher does, on unlabelled inputs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.coverage import record_of
from bitquant.distillation.hidden import hidden_states
from bitquant.distillation.losses import hidden_loss, output_loss
from bitquant.distillation.optimizer import linear_schedule, parameter_groups
from bitquant.inputs import first_tensor, padding_mask, run
from bitquant.nn import BitLinear

FLIP_EVERY = 10  # steps between two counts of flipped weight signs


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    lr: float = 5e-4,
    scale_lr: float = 5e-4,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    clip: float = 1.0,
    hidden_weight: float = 1.0,
    output_weight: float = 1.0,
    dropout: bool = False,
    seed: int = 0,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Train ``student`` in place against ``teacher``: hidden states of every encoder layer, and the outputs.

    Args:
        student: a model after ``quantize_``.
        teacher: the float model it came from; runs in eval mode, without gradients.
        batches: inputs as for ``example_inputs``; iterated again and again until ``steps`` are done. Tokens where a
            dict's ``attention_mask`` is 0 carry no loss.
        lr: peak learning rate of weights, biases and norms. scale_lr: of the quantizers' scales.
        weight_decay: of the latent weights. warmup: share of the steps with a rising rate. clip: gradient norm.
        hidden_weight, output_weight: weights of the two losses.
        dropout: train the student in training mode; otherwise its dropout, layer drop and masking stay off, so that it
            sees what the teacher sees.
        seed: of everything random in training.
        progress: called after every step with step, steps, loss, flip_ratio (share of weight signs flipped a step),
            tokens_per_s and eta_s.

    Raises:
        ValueError: no steps, no batches, or a student that was not quantized.
        FloatingPointError: the loss is not finite; the student then holds the weights before that step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    blocks = record_of(student).blocks
    torch.manual_seed(seed)
    student.train(dropout)
    teacher.eval()
    optimizer = torch.optim.AdamW(parameter_groups(student, lr=lr, scale_lr=scale_lr, weight_decay=weight_decay))
    schedule = linear_schedule(optimizer, steps=steps, warmup=warmup)
    meter = _Meter(student, steps)
    with hidden_states(student, blocks) as hidden_s, hidden_states(teacher, blocks) as hidden_t:
        for step, batch in enumerate(itertools.islice(_cycle(batches), steps), start=1):
            mask = padding_mask(batch)
            with torch.no_grad():
                target = run(teacher, batch)
            output = run(student, batch)
            loss = output_weight * output_loss(output, target, mask)
            if hidden_t:
                loss = loss + hidden_weight * hidden_loss(hidden_s, hidden_t, mask)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}; lower the learning rate (lr={lr})")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), clip)
            optimizer.step()
            schedule.step()
            state = meter.update(step, value, _tokens(batch, mask))
            if progress is not None:
                progress(state)
    student.eval()


def _cycle(batches: Iterable[Any]):
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("there is no data to distil on: batches is empty (give a list, not a spent iterator)")


def _tokens(batch: Any, mask: Tensor | None) -> int:
    if mask is not None:
        return int(mask.sum())
    return math.prod(first_tensor(batch).shape[:2])


class _Meter:
    """Speed, time left, and how many weight signs flip."""

    def __init__(self, student: nn.Module, steps: int):
        self.layers = [m for m in student.modules() if isinstance(m, BitLinear)]
        self.signs = self._signs()
        self.steps, self.tokens, self.flip_ratio, self.start = steps, 0, 0.0, time.perf_counter()

    def _signs(self) -> list[Tensor]:
        return [layer.weight_quantizer.signs(layer.weight) for layer in self.layers]

    def update(self, step: int, loss: float, tokens: int) -> dict[str, float]:
        if step % FLIP_EVERY == 0:
            before, self.signs = self.signs, self._signs()
            flips = sum(int((a != b).sum()) for a, b in zip(before, self.signs, strict=True))
            self.flip_ratio = flips / max(1, sum(s.numel() for s in self.signs)) / FLIP_EVERY
        self.tokens += tokens
        elapsed = time.perf_counter() - self.start
        return {
            "step": step,
            "steps": self.steps,
            "loss": loss,
            "flip_ratio": self.flip_ratio,
            "tokens_per_s": self.tokens / elapsed,
            "eta_s": elapsed / step * (self.steps - step),
        }
