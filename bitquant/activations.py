"""The activation function of the student: BiT trains with ReLU where the float model had GELU (bit.md section 2)."""

from __future__ import annotations

from torch import nn

from bitquant.capture import Discovery
from bitquant.config import QuantConfig
from bitquant.plan import Plan

SMOOTH_ACTIVATIONS = ("gelu", "silu", "swish")


def replace_by_relu_(model: nn.Module, discovery: Discovery, config: QuantConfig) -> list[str]:
    """Replace the GELU and SiLU modules inside encoder layers by ReLU, in place; returns their paths."""
    blocks = Plan(model, discovery, config).blocks
    smooth = [
        name
        for name, module in model.named_modules()
        if any(word in type(module).__name__.lower() for word in SMOOTH_ACTIVATIONS)
        and not list(module.children())
        and any(name.startswith(block + ".") for block in blocks)
    ]
    set_relu_(model, smooth)
    return smooth


def set_relu_(model: nn.Module, paths: list[str]) -> None:
    """Put ReLU at these paths, in place."""
    for path in paths:
        model.set_submodule(path, nn.ReLU())
