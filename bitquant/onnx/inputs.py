"""What a model is traced on: example inputs that let every dimension vary."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.capture.owner import OwnerMixin, original_forward
from bitquant.capture.run import bind


def keywords(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs by the names of the forward's arguments.

    Raises:
        ValueError: not a tensor, a tuple or a dict, or arguments that the forward does not take by name.
    """
    args, kwargs = bind(example_inputs)
    own = isinstance(model, OwnerMixin)  # a rewritten forward takes anything
    signature = inspect.signature(original_forward(model).__get__(model) if own else model.forward)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ValueError(f"the model does not take these example_inputs: {error}") from None
    named: dict[str, Any] = {}
    for name, value in bound.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise ValueError("an exported model needs names for its inputs: this forward takes *args")
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named


def tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among keyword arguments.

    Raises:
        ValueError: an argument that is neither a tensor nor a plain constant.
    """
    for name, value in inputs.items():
        if not isinstance(value, (Tensor, bool, int, float, str, type(None))):
            raise ValueError(f"input {name!r} is a {type(value).__name__}: exported models take tensors")
    found = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if not found:
        raise ValueError("example_inputs hold no tensor")
    return found


def widened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Example inputs of at least two samples, as torch would fix a dimension of size 1."""
    found = tensors(inputs)
    if all(x.ndim and x.shape[0] == 1 for x in found.values()):
        found = {name: torch.cat([x, x]) for name, x in found.items()}
    return {**inputs, **found}
