"""Freezing: one graph for each kind of call of an owner, without guards, for export and compilation."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from .errors import CaptureError
from .guards import is_guard
from .owner import OwnerMixin
from .rewrite import Rewritten
from .run import run


def freeze_(model: nn.Module, example_inputs) -> nn.Module:
    """Fix, for every rewritten module, the graphs that `example_inputs` take in eval mode.

    Afterwards the model serves calls of these kinds only (same arguments given or left out, same dtypes), for any
    batch size and length; there is no dispatch left, so that torch.export, torch.compile and torch.onnx.export see
    ordinary code. Modules on the fall-back path keep it.

    Raises:
        CaptureError: where the model does not run, or one module needs two graphs for calls of one kind.
    """
    rewritten = {path: m for path, m in model.named_modules() if isinstance(m, OwnerMixin)}
    for module in rewritten.values():
        module._capture.graphs.clear()
        module._capture.frozen = {}
    run(model, example_inputs)
    for path, module in rewritten.items():
        capture = module._capture
        for (_, _, key), graphs in capture.graphs.items():
            if len(graphs) > 1:
                raise CaptureError(f"{path} needs {len(graphs)} graphs for calls of one kind and cannot be frozen")
            capture.frozen[key] = without_guards(graphs[0])
    return model


def without_guards(rewritten: Rewritten) -> Rewritten:
    """The same graph, serving every call."""
    graph = copy.deepcopy(rewritten.graph)
    for node in list(graph.nodes):
        if is_guard(node):
            graph.erase_node(node)
    return replace(Rewritten.compile(graph, rewritten.out_spec, rewritten.unwrapped), guarded=False)
