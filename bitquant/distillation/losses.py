"""What the student is asked to match: hidden states and outputs of the teacher, padding left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant.distillation.hidden import in_both
from bitquant.inputs import named_tensors
from bitquant.masks import mean_pool
from bitquant.padding import Padding

LOGITS = ("logits",)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
FLOOR = 0.01  # least share of the power that counts as variance
CONSTANT = 1e-6  # of the targets' mean variance: a regression target of less is 0 and stays so


def problem_type_of(model: nn.Module) -> str | None:
    """What a model's logits are, one of ``PROBLEM_TYPES``, where its configuration says so."""
    named = getattr(getattr(model, "config", None), "problem_type", None)
    return named if named in PROBLEM_TYPES else None


def masked_error(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared error over valid tokens, as a share of the teacher's variance: 1 is about as bad as predicting the
    mean of every channel, which in some encoders is most of a hidden state's power.

    Of tensors that are not sequences, and of a single token, it is a share of the mean square: a few samples or none
    say nothing of a variance.

    Args:
        student, teacher: (batch, time, channels), or any equal shapes.
        valid: bool (batch, time), or of as many dimensions as the states and broadcastable to them, 1 long in that of
            the channels; None for all.
    """
    student, teacher = student.float(), teacher.float()
    weight = teacher.new_ones((1,) * teacher.ndim) if valid is None else _aligned(valid, teacher).to(teacher.dtype)
    error, power = (((x * weight).sum()) for x in ((student - teacher).square(), teacher.square()))
    channels = [dim for dim in range(teacher.ndim) if weight.shape[dim] == 1]
    if teacher.ndim != 3 or not channels:
        return error / power.clamp(min=1e-12)
    weight = weight.expand([1 if dim == channels[-1] else size for dim, size in enumerate(teacher.shape)])
    tokens = [dim for dim in range(3) if dim != channels[-1]]
    count = weight.sum()
    mean = (teacher * weight).sum(tokens, keepdim=True) / count.clamp(min=1)
    spread = ((teacher - mean).square() * weight).sum()
    variance = torch.maximum(spread * count / (count - 1).clamp(min=1), FLOOR * power)
    return error / torch.where(count > 1, variance, power).clamp(min=1e-12)


def soft_cross_entropy(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """KL divergence from the teacher's to the student's distribution over the last dimension, mean over valid
    positions. Classes that the teacher masks out by -inf are left out.

    Args:
        valid: bool, of the positions, (...) for scores (..., classes), or (..., 1); None for all.
    """
    student, teacher = _finite(student.float(), teacher.float(), torch.finfo(torch.float32).min)
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)
    return _mean_over(divergence.sum(-1), valid)


def label_error(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Of scores (..., labels) that each say yes or no: KL divergence of a label, mean over labels and valid positions;
    ``valid`` as for ``soft_cross_entropy``."""
    student, teacher = _finite(student.float(), teacher.float(), torch.finfo(torch.float32).min)
    target = teacher.sigmoid()
    ours, least = (F.binary_cross_entropy_with_logits(x, target, reduction="none") for x in (student, teacher))
    return _mean_over((ours - least).mean(-1), valid)


def target_error(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Of regression targets (..., targets): the squared error of each as a share of its own variance over valid
    positions (of its mean square if there is but one), mean over targets; ``valid`` as for ``soft_cross_entropy``."""
    student, teacher = _finite(student.float(), teacher.float(), 0.0)
    weight = teacher.new_ones((1,) * teacher.ndim) if valid is None else _aligned(valid, teacher).to(teacher.dtype)
    weight = weight.expand(*teacher.shape[:-1], weight.shape[-1]).flatten(0, -2)
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    count = weight.sum(0)
    mean = (teacher * weight).sum(0) / count.clamp(min=1)
    error, power, spread = ((x.square() * weight).sum(0) for x in (student - teacher, teacher, teacher - mean))
    share = torch.maximum(spread * count / (count - 1).clamp(min=1), FLOOR * power)
    share = torch.where(count > 1, share, power)
    return (error / share.maximum(CONSTANT * share.mean()).clamp(min=1e-12)).mean()


def output_error(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """``masked_error`` where the teacher's values are finite."""
    return masked_error(*_finite(student.float(), teacher.float(), 0.0), valid)


def output_loss(student: Any, teacher: Any, padding: Padding | None, problem_type: str | None = None) -> Tensor:
    """Mean over the float outputs both models give, a scalar ``loss`` left out: ``logits`` by what they are, everything
    else by ``output_error``.

    Args:
        padding: has followed the teacher's run; None where no input is masked.
        problem_type: of the logits, one of ``PROBLEM_TYPES``. None: regression of a single one, else classes.

    Raises:
        ValueError: they share no float output.
    """
    shared = _shared(student, teacher)
    if not shared:
        raise ValueError("student and teacher give no float output of the same name to compare")
    losses = [
        (_of_logits(ours, problem_type) if name in LOGITS else output_error)(ours, theirs, _valid(padding, theirs))
        for name, (ours, theirs) in shared.items()
    ]
    return torch.stack(losses).mean()


def of_classes(logits: Tensor, problem_type: str | None) -> bool:
    """Whether logits are a distribution over classes: that of a single one is 1 whatever the logit."""
    return problem_type in (None, PROBLEM_TYPES[0]) and logits.shape[-1] > 1


def _of_logits(logits: Tensor, problem_type: str | None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The loss that fits them."""
    if problem_type == "multi_label_classification":
        return label_error
    return soft_cross_entropy if of_classes(logits, problem_type) else target_error


def pooled_loss(student: Any, teacher: Any, padding: Padding | None) -> Tensor:
    """Mean over the float outputs (batch, time, channels) both models give, logits left out, of how far the samples'
    means over valid tokens are from the teacher's: ``masked_error`` of them, so a share of their variance in the batch.

    ValueError when they share no such output.
    """
    shared = {name: both for name, both in _shared(student, teacher).items() if both[0].ndim == 3}
    losses = [
        masked_error(*(mean_pool(output, _valid(padding, both[1])).unsqueeze(0) for output in both), None)
        for name, both in shared.items()
        if name not in LOGITS
    ]
    if not losses:
        raise ValueError(
            "student and teacher give no float output (batch, time, channels) of the same name whose mean could be "
            "compared: leave pooled_weight at 0"
        )
    return torch.stack(losses).mean()


def hidden_loss(student: dict[str, Tensor], teacher: dict[str, Tensor], padding: Padding | None) -> Tensor:
    """Mean of ``masked_error`` over the runs of the encoder's layers in both models, of a forward that ``padding`` has
    followed in the teacher; 0 where no layer ran in both."""
    losses = [
        masked_error(student[name], teacher[name], _valid(padding, teacher[name])) for name in in_both(student, teacher)
    ]
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _shared(student: Any, teacher: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The float outputs of the same name that hold a value for each sample."""
    student, teacher = named_tensors(student), named_tensors(teacher)
    return {
        name: (x, teacher[name])
        for name, x in student.items()
        if name in teacher and x.is_floating_point() and x.ndim > 0 and x.numel() > 0
    }


def _valid(padding: Padding | None, x: Tensor) -> Tensor | None:
    return None if padding is None else padding.valid(x)


def _aligned(valid: Tensor, x: Tensor) -> Tensor:
    """A mask with as many dimensions as what it is for."""
    return valid if valid.ndim == x.ndim else valid.unsqueeze(-1)


def _finite(student: Tensor, teacher: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Both with a finite value where the teacher's is infinite, so that they agree there."""
    infinite = teacher.isinf()
    return student.masked_fill(infinite, fill), teacher.masked_fill(infinite, fill)


def _mean_over(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over valid positions (...); ``valid`` (...) or (..., 1)."""
    if valid is None:
        return x.mean()
    weight = _aligned(valid, x.unsqueeze(-1)).any(-1).expand(x.shape)
    return (x * weight).sum() / weight.sum().clamp(min=1)
