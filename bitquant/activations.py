"""The activation function of the student: BiT trains with ReLU where the float model had GELU (bit.md section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from bitquant.blocks import within

SMOOTH_MODULES = ("gelu", "silu", "swish", "mish")


def replace_by_relu_(model: nn.Module, blocks: list[str]) -> list[str]:
    """Replace GELU, SiLU and Mish inside the encoder layers at ``blocks`` by ReLU, in place; returns their paths."""
    smooth = smooth_activations(model, blocks)
    set_relu_(model, smooth)
    return smooth


def smooth_activations(model: nn.Module, blocks: list[str]) -> list[str]:
    """Paths of GELU, SiLU and Mish inside the encoder layers at ``blocks``."""
    smooth = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not any(within(path, block) for block in blocks):
            continue
        if not list(module.children()) and any(word in type(module).__name__.lower() for word in SMOOTH_MODULES):
            smooth.append(path)
        smooth += [f"{path}.{name}" for name, value in vars(module).items() if _is_smooth(value)]
    return smooth


def set_relu_(model: nn.Module, paths: list[str]) -> None:
    """Put ReLU at these ``smooth_activations``, in place: a module where there is one, else the function an attribute
    holds."""
    for path in paths:
        owner_path, _, name = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        if name in owner._modules:
            owner._modules[name] = nn.ReLU()
        else:
            setattr(owner, name, F.relu)


def _is_smooth(value) -> bool:
    """Whether an attribute holds a smooth activation function, as ``nn.TransformerEncoderLayer.activation`` does."""
    return any(value is function for function in (F.gelu, F.silu, F.mish))
