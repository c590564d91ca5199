"""What the student is asked to match: hidden states and outputs of the teacher, padding left out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitquant.inputs import named_tensors
from bitquant.masks import mask_for, mean_pool

LOGITS = ("logits",)
FLOOR = 0.01  # least share of the power that counts as variance


def masked_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error over valid tokens, as a share of the teacher's variance: 1 is about as bad as predicting the
    mean of every channel, which in some encoders is most of a hidden state's power.

    Of tensors that are not sequences, and of a single token, it is a share of the mean square: a few samples or none
    say nothing of a variance.

    Args:
        student, teacher: (batch, time, channels), or any equal shapes.
        mask: bool (batch, time), True for valid tokens, or for samples of which time steps are made (``mask_for``).
    """
    student, teacher = student.float(), teacher.float()
    error, power = (student - teacher).square(), teacher.square()
    if teacher.ndim != 3:
        return error.sum() / power.sum().clamp(min=1e-12)
    valid = mask_for(mask, teacher.shape)
    weight = teacher.new_ones(teacher.shape[:2]) if valid is None else valid.to(teacher.dtype)
    weight, count = weight.unsqueeze(-1), weight.sum()
    mean = (teacher * weight).sum((0, 1)) / count.clamp(min=1)
    error, power, spread = ((x * weight).sum() for x in (error, power, (teacher - mean).square()))
    variance = torch.maximum(spread * count / (count - 1).clamp(min=1), FLOOR * power)
    return error / torch.where(count > 1, variance, power).clamp(min=1e-12)


def soft_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """KL divergence from the teacher's to the student's distribution over the last dimension, mean over valid
    positions."""
    divergence = F.kl_div(
        student.float().log_softmax(-1), teacher.float().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    valid = mask_for(mask, divergence.shape) if divergence.ndim == 2 else None
    if valid is not None:
        return (divergence * valid).sum() / valid.sum().clamp(min=1)
    return divergence.mean()


def output_loss(student: Any, teacher: Any, mask: Tensor | None) -> Tensor:
    """Mean over the float outputs both models give: KL for logits, ``masked_error`` for everything else.

    ValueError when they share no float output.
    """
    shared = _shared(student, teacher)
    if not shared:
        raise ValueError("student and teacher give no float output of the same name to compare")
    losses = [(soft_cross_entropy if name in LOGITS else masked_error)(*both, mask) for name, both in shared.items()]
    return torch.stack(losses).mean()


def pooled_loss(student: Any, teacher: Any, mask: Tensor | None) -> Tensor:
    """Mean over the float outputs (batch, time, channels) both models give, logits left out, of how far the samples'
    means over valid tokens are from the teacher's: ``masked_error`` of them, so a share of their variance in the batch.

    ValueError when they share no such output.
    """
    shared = {name: both for name, both in _shared(student, teacher).items() if both[0].ndim == 3}
    losses = [
        masked_error(*(mean_pool(output, mask).unsqueeze(0) for output in both), None)
        for name, both in shared.items()
        if name not in LOGITS
    ]
    if not losses:
        raise ValueError(
            "student and teacher give no float output (batch, time, channels) of the same name whose mean could be "
            "compared: leave pooled_weight at 0"
        )
    return torch.stack(losses).mean()


def _shared(student: Any, teacher: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The float outputs of the same name."""
    student, teacher = named_tensors(student), named_tensors(teacher)
    return {name: (x, teacher[name]) for name, x in student.items() if name in teacher and x.is_floating_point()}


def hidden_loss(student: dict[str, Tensor], teacher: dict[str, Tensor], mask: Tensor | None) -> Tensor:
    """Mean over the encoder's layers of ``masked_error``."""
    losses = [masked_error(student[path], teacher[path], mask) for path in teacher]
    return torch.stack(losses).mean()
