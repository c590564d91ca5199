"""AdamW with a learning rate of its own for scales, warm-up and linear decay."""

from __future__ import annotations

import torch
from torch import nn

from bitquant.quantizers import ActivationQuantizer

SCALE_NAMES = ("alpha", "log_ratio", "log_gain")


def check_dtypes(student: nn.Module) -> None:
    """ValueError for float16 parameters: AdamW divides by the root of squared gradients, which are 0 there."""
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise ValueError(
                f"{name} is float16, in which AdamW's steps are far too large: call .float() on the model before "
                "quantize_ (transformers loads a float16 checkpoint as float16 unless it is given dtype=torch.float32)"
            )


def parameter_groups(student: nn.Module, *, lr: float, scale_lr: float, weight_decay: float) -> list[dict]:
    """Latent weights (decayed); embedding tables, biases, norms and shifts (not decayed: the rows of a table that no
    step reads would only fade); quantizer scales (own rate, not decayed).

    Each group keeps its peak rate as ``peak``.

    Raises:
        ValueError: a parameter to train is float16.
    """
    check_dtypes(student)
    kept = {id(m.shift) for m in student.modules() if isinstance(m, ActivationQuantizer) and m.shift is not None}
    kept |= {id(m.weight) for m in student.modules() if isinstance(m, nn.Embedding)}
    groups = {
        "weights": {"params": [], "lr": lr, "weight_decay": weight_decay},
        "others": {"params": [], "lr": lr, "weight_decay": 0.0},
        "scales": {"params": [], "lr": scale_lr, "weight_decay": 0.0},
    }
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[2] in SCALE_NAMES:
            groups["scales"]["params"].append(parameter)
        elif parameter.ndim < 2 or id(parameter) in kept:
            groups["others"]["params"].append(parameter)
        else:
            groups["weights"]["params"].append(parameter)
    return [{**group, "peak": group["lr"]} for group in groups.values() if group["params"]]


def rate(step: int, *, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at ``step`` (from 0): rises linearly over the first ``warmup`` share of
    ``steps``, then falls linearly to 0."""
    rising = max(1, round(steps * warmup))
    return min((step + 1) / rising, (steps - step) / max(1, steps - rising))
