"""Which models can be captured: Python modules, whose functions are seen when they run."""

from __future__ import annotations

import torch
from torch import nn

from .errors import CaptureError
from .mutate import is_mutated


def check_model(model) -> None:
    """Raise for a model whose products cannot be found.

    Raises:
        CaptureError: it is no module, compiled to TorchScript or exported, in whole or in part, or rewritten already.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise CaptureError(f"{kind} is no torch.nn.Module: pass the Python module whose layers are to be found")
    for path, module in model.named_modules():
        if (compiled := _compiled(module)) is not None:
            raise CaptureError(
                f"{path or 'the model'} is {compiled}, whose layers cannot be swapped: pass the Python module it was "
                "made from"
            )
        if is_mutated(module):
            raise CaptureError(f"{path or 'the model'} is rewritten already: discover the products of the original")


def _compiled(module: nn.Module) -> str | None:
    """What a module that is no Python code any more is."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    if isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return "a graph of torch.export"
    return None


def check_values(model: nn.Module) -> None:
    """Raise CaptureError for a model with weights on the meta device."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CaptureError(f"{name} has no values, it is on the meta device: load the model's weights first")
