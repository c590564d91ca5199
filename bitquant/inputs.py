"""Example inputs and batches: a tensor, a tuple of arguments, or a dict of keyword arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.capture.ordinary import ordinary


def run(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on inputs; copies of those made in inference mode, which no training can use. ValueError: they are
    empty."""
    check_not_empty(inputs)
    inputs = inputs if torch.is_inference_mode_enabled() else ordinary(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def check_not_empty(inputs: Any) -> None:
    """ValueError for a batch of no samples, or whose first tensor holds no values."""
    for index, tensor in enumerate(named_tensors(inputs).values()):
        if tensor.shape[:1] == (0,) or (index == 0 and not tensor.numel()):
            raise ValueError(f"a batch is empty: it holds a tensor of shape {tuple(tensor.shape)}")


def padding_mask(inputs: Any) -> Tensor | None:
    """bool (batch, time), True for valid tokens: the 2-D ``attention_mask`` of a dict, boolean or of 0 and 1; None
    without one, and for any other mask."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        return None
    return mask.bool()


def named_tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor in nested mappings, sequences and dataclasses, by its path: ``{"logits": ..., "states.0": ...}``."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, item in items:
        found |= named_tensors(item, f"{name}.{key}" if name else str(key))
    return found


def first_tensor(value: Any) -> Tensor:
    """The first tensor found in inputs or outputs. ValueError when there is none."""
    for tensor in named_tensors(value).values():
        return tensor
    raise ValueError(f"a {type(value).__name__} holds no tensor")
