"""Example inputs and batches: a tensor, a tuple of arguments, or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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


def mask_for(mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """A padding mask (batch, samples) for hidden states of a shape (batch, frames, ...).

    Where the model has its own number of frames, each takes the mask's value at its place in time. None without a
    mask, or where the batch differs.
    """
    if mask is None or len(shape) < 2 or mask.shape[0] != shape[0] or shape[1] == 0:
        return None
    if mask.shape[1] == shape[1]:
        return mask
    if mask.shape[1] < shape[1]:
        return None
    places = (torch.arange(shape[1], device=mask.device) * 2 + 1) * mask.shape[1] // (2 * shape[1])
    return mask[:, places]
