"""What ``distill`` is given, checked before its first step: trainings that could not work, or would train nothing."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor, nn

from bitquant.nn.weights import QuantizedLayer

RANGES = {  # name -> (lowest, highest, whether the lowest is allowed)
    "lr": (0.0, math.inf, True),
    "scale_lr": (0.0, math.inf, True),
    "weight_decay": (0.0, math.inf, True),
    "warmup": (0.0, 1.0, True),
    "clip": (0.0, math.inf, False),
    "hidden_weight": (0.0, math.inf, True),
    "output_weight": (0.0, math.inf, True),
    "pooled_weight": (0.0, math.inf, True),
}


def check_numbers(settings: dict[str, Any], checkpoint_every: int) -> None:
    """ValueError for a setting of ``distill`` that is no number or beyond its range."""
    for name, value in {"steps": settings["steps"], "checkpoint_every": checkpoint_every}.items():
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    if not _is_whole(settings["seed"]):
        raise ValueError(f"seed must be a whole number, got {settings['seed']!r}")
    for name, (lowest, highest, allowed) in RANGES.items():
        value = settings[name]
        known = isinstance(value, (int, float)) and not math.isnan(value)
        if not known or not lowest <= value <= highest or (value == lowest and not allowed):
            lower = f"at least {lowest:g}" if allowed else f"above {lowest:g}"
            upper = "" if highest == math.inf else f" and at most {highest:g}"
            raise ValueError(f"{name} must be {lower}{upper}, got {value!r}")
        if name != "clip" and math.isinf(value):
            raise ValueError(f"{name} must be finite, got {value!r}")
    if settings["lr"] == settings["scale_lr"] == 0:
        raise ValueError("lr and scale_lr are both 0: nothing would train")


def check_losses(settings: dict[str, Any], blocks: list[str]) -> None:
    """ValueError when no loss of ``distill`` counts; ``blocks`` are the layers whose hidden states are matched."""
    weights = [settings["output_weight"], settings["pooled_weight"], settings["hidden_weight"] if blocks else 0]
    if settings["extra_loss"] is None and not any(weights):
        hidden = "hidden_weight is 0" if blocks else "there are no encoder layers for hidden_weight"
        raise ValueError(f"output_weight and pooled_weight are 0, and {hidden}: there is no loss to train by")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_models(student: nn.Module, teacher: nn.Module, blocks: list[str]) -> None:
    """ValueError for a student and a teacher that could not be trained, or would not change; a warning where the
    weights of quantized layers stay as they are.

    Args:
        blocks: names of the encoder's layers, which both must have.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            "nothing of the student trains, no parameter has requires_grad: student.requires_grad_() first"
        )
    if student is teacher:
        raise ValueError("the student is its own teacher: give the float model it was a copy of (copy.deepcopy)")
    taught = {_place(tensor) for tensor in (*teacher.parameters(), *teacher.buffers())} - {None}
    shared = [name for name, parameter in trained.items() if _place(parameter) in taught]
    if shared:
        raise ValueError(
            f"student and teacher share {len(shared)} parameter(s) that train, such as {shared[0]}: quantize a copy of "
            "the teacher (copy.deepcopy)"
        )
    names = {name for name, _ in teacher.named_modules(remove_duplicate=False)}
    if missing := [name for name in blocks if name not in names]:
        raise ValueError(f"the teacher has no {missing[0]}, which the student learns from: give the model it came from")
    layers = {n: m for n, m in student.named_modules() if isinstance(m, QuantizedLayer)}
    frozen = [name for name, layer in layers.items() if not layer.weight.requires_grad]
    if frozen:
        warnings.warn(
            f"the weights of {len(frozen)} of {len(layers)} quantized layers, such as {frozen[0]}, are frozen, so that "
            "of these only the scales train: student.requires_grad_() trains all",
            stacklevel=3,
        )


def _place(tensor: Tensor) -> int | None:
    """Where a tensor's memory begins; None where it has none."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # some subclasses have no storage
        return None


def check_savable(student: nn.Module) -> None:
    """ValueError for a state that no training checkpoint can hold."""
    for name, value in student.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} of the student is a {type(value).__name__}; a training checkpoint holds tensors")
