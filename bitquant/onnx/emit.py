"""One packed layer as one node: what it stands for, recorded while it runs or emitted while torch exports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.onnx.functions import DOMAIN

LAYER = "layer"  # the attribute that carries a node's name through torch's exporter


@dataclass
class Call:
    """One run of a layer: its ``inputs`` from the graph (activations first, then its own tensors) and its ``output``.
    ``levels`` gives, for the index of a quantized input, the integers that it becomes."""

    name: str
    inputs: list[Tensor]
    output: Tensor
    levels: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)


_recorded: list[Call] | None = None
_symbolic = torch._dynamo.dont_skip_tracing(torch.onnx.ops.symbolic)  # a strict export refuses to look inside
_exporting = False  # not torch's own flag, which reads False in a strict export


@contextmanager
def exporting():
    """Within, layers give nodes in place of values."""
    global _exporting
    before, _exporting = _exporting, True
    try:
        yield
    finally:
        _exporting = before


@contextmanager
def recording():
    """Yields the list of all calls made within, in order."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def emit(
    layer: nn.Module,
    function: str,
    inputs: list[Tensor],
    shape: tuple,
    run: Callable[[], Tensor],
    *,
    levels: dict[int, Callable[[Tensor], Tensor]],
    **attributes: Any,
) -> Tensor:
    """What ``layer`` gives: a node of ``function`` while ``exporting``, else ``run()``, recorded if that is asked for.

    Args:
        layer: its ``path`` in the model names the node.
        inputs: fp32, int or bool tensors, in the order of the function's. shape: of the output, fp32.
        levels: see :class:`Call`. attributes: int, string or list of int.
    """
    if _exporting:
        attributes[LAYER] = layer.path
        return _symbolic(
            f"{DOMAIN}::{function}", inputs, attributes, dtype=torch.float32, shape=tuple(shape), version=1
        )
    output = run()
    if _recorded is not None:
        _recorded.append(Call(layer.path, [x.detach().clone() for x in inputs], output.detach().clone(), levels))
    return output
