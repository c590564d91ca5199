"""Example inputs and batches: a tensor, a tuple of arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

PADDING_MASKS = ("attention_mask", "padding_mask")


def run(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def padding_mask(inputs: Any) -> Tensor | None:
    """bool (batch, time), True for valid tokens: the 2-D boolean or integer ``attention_mask`` of a dict, if any."""
    if not isinstance(inputs, Mapping):
        return None
    masks = (inputs[key] for key in PADDING_MASKS if isinstance(inputs.get(key), Tensor))
    return next((mask.bool() for mask in masks if mask.ndim == 2 and not mask.is_floating_point()), None)


def first_tensor(inputs: Any) -> Tensor:
    """The first tensor found in inputs. ValueError when there is none."""
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError("inputs hold no tensor")
