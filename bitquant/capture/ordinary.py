"""Tensors made in inference mode count no changes and cannot be trained: ordinary copies of them."""

from __future__ import annotations

import contextlib
import itertools

import torch
from torch import nn
from torch.utils._pytree import tree_any, tree_map

from .purity import Attributes


def ordinary(inputs):
    """`inputs`, nested, with a copy of every tensor that was made in inference mode."""
    if not tree_any(_is_inference, inputs):
        return inputs
    with torch.inference_mode(False):
        return tree_map(lambda x: x.clone() if _is_inference(x) else x, inputs)


def ordinary_(model: nn.Module) -> None:
    """Put a copy in the place of every tensor a model holds that was made in inference mode: parameters, buffers, and
    what a forward has kept as an attribute. Tied ones stay tied."""
    copies: dict[int, torch.Tensor] = {}

    def copy_of(tensor):
        if id(tensor) not in copies:
            made = tensor.detach().clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
        return copies[id(tensor)]

    with torch.inference_mode(False):
        for module in model.modules():
            for held in (module._parameters, module._buffers, vars(module)):
                for name, tensor in list(held.items()):
                    if _is_inference(tensor):
                        setattr(module, name, copy_of(tensor))  # recurrent layers follow what is set


@contextlib.contextmanager
def as_ordinary(model: nn.Module):
    """Context in which a model holds ordinary tensors."""
    changed = [Attributes(module) for module in model.modules() if any(map(_is_inference, _held(module)))]
    ordinary_(model)
    try:
        yield
    finally:
        for attributes in changed:
            attributes.restore()


def _held(module: nn.Module):
    """What a module holds, tensors among it."""
    return itertools.chain(module._parameters.values(), module._buffers.values(), vars(module).values())


def _is_inference(x) -> bool:
    return isinstance(x, torch.Tensor) and x.is_inference()
