"""From a packed model to the message of an ONNX file."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from onnx import ModelProto, checker
from torch import nn

from bitquant.capture import CaptureError, freeze_
from bitquant.onnx.emit import exporting
from bitquant.onnx.functions import OPSET
from bitquant.onnx.graph import finish_
from bitquant.onnx.inputs import tensors, widened
from bitquant.onnx.layers import to_nodes_
from bitquant.onnx.names import name_values_, output_names
from bitquant.onnx.tracing import as_exported, quiet

LARGEST = 2**31 - 2**24  # bytes of weights: one protobuf message holds less than 2^31, nodes and names included
LONGEST = 300  # characters of torch's own words that an error repeats


def build(
    model: nn.Module, inputs: Mapping[str, Any], *, dynamic: Any = True, fold: bool = False
) -> tuple[nn.Module, ModelProto]:
    """A frozen copy of a packed model whose layers are nodes, and its file. Arguments and errors as for
    ``bitquant.export_onnx``, with the inputs by name."""
    wrong = {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    if wrong:
        raise ValueError(f"export_onnx takes a float32 model, this one holds {wrong.pop()}: call model.float() first")
    nodes = copy.deepcopy(model).cpu().eval()
    to_nodes_(nodes, fold=fold)
    proto = trace(nodes, inputs, dynamic=dynamic)
    finish_(proto)
    checker.check_model(proto, full_check=True)
    return nodes, proto


def trace(model: nn.Module, inputs: Mapping[str, Any], *, dynamic: Any) -> ModelProto:
    """What torch's exporter gives for a model, which is frozen, in place, for calls like ``inputs``."""
    inputs = inputs if dynamic is False else widened(inputs)
    try:
        with as_exported(model):
            freeze_(model, inputs)
            with torch.no_grad():
                names = output_names(model(**inputs))
        with quiet(), torch.no_grad(), exporting():
            program = torch.onnx.export(
                model,
                (),
                kwargs=dict(inputs),
                dynamo=True,
                dynamic_shapes=_shapes(model, inputs, dynamic),
                opset_version=OPSET,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, CaptureError) as error:
        raise ValueError(f"torch cannot trace this model for export: {_cause(error)}") from error
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size > LARGEST:
        raise ValueError(f"the file would hold {size} bytes of weights; one ONNX file holds at most {LARGEST}")
    name_values_(program.model, list(tensors(inputs)), names)
    return program.model_proto


def _shapes(model: nn.Module, inputs: Mapping[str, Any], dynamic: Any) -> dict[str, Any] | None:
    """torch's description of what may vary, nested as the forward takes it."""
    if dynamic is False:
        return None
    found = tensors(inputs)
    if dynamic is True:
        chosen = {name: dict.fromkeys(range(x.ndim), torch.export.Dim.AUTO) for name, x in found.items()}
    elif unknown := dynamic.keys() - found.keys():
        raise ValueError(f"dynamic names {sorted(unknown)[0]!r}; the inputs are {', '.join(found)}")
    else:
        chosen = {name: dict.fromkeys(dynamic.get(name, ()), torch.export.Dim.DYNAMIC) for name in found}
    bound = inspect.signature(model.forward).bind(**{name: chosen.get(name) for name in inputs})
    return dict(bound.arguments)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:LONGEST]}"
