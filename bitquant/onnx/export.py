"""``export_onnx``: a packed model as an ONNX file that any runtime runs."""

from __future__ import annotations

import copy
import logging
import os
import uuid
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto, checker
from torch import nn

from bitquant.capture import CaptureError, freeze_
from bitquant.coverage import is_packed
from bitquant.onnx.functions import OPSET
from bitquant.onnx.graph import finish_
from bitquant.onnx.inputs import keywords, tensors, widened
from bitquant.onnx.layers import to_nodes_

LARGEST = 2**31 - 1  # bytes of one protobuf message


def build(model: nn.Module, example_inputs: Any, *, dynamic: Any = True, fold: bool = False) -> ModelProto:
    """The file of a packed model as a message; arguments and errors as for ``export_onnx``."""
    if not is_packed(model):
        raise ValueError("export_onnx takes a packed model: call convert_ first")
    wrong = {p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    if wrong:
        raise ValueError(f"export_onnx takes a float32 model, this one holds {wrong.pop()}: call model.float() first")
    inputs = widened(keywords(model, example_inputs)) if dynamic is not False else keywords(model, example_inputs)
    model = copy.deepcopy(model).cpu().eval()
    to_nodes_(model, fold=fold)
    try:
        freeze_(model, inputs)
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=_shapes(inputs, dynamic),
                opset_version=OPSET,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, CaptureError) as error:
        raise ValueError(f"torch cannot trace this model for export: {_cause(error)}") from error
    proto = program.model_proto
    finish_(proto)
    if proto.ByteSize() > LARGEST:
        raise ValueError(f"the file would have {proto.ByteSize()} bytes; one ONNX file holds at most {LARGEST}")
    checker.check_model(proto, full_check=True)
    return proto


def _shapes(inputs: Mapping[str, Any], dynamic: Any) -> dict[str, Any] | None:
    """torch's description of what may vary."""
    found = tensors(inputs)
    if dynamic is True:
        return {n: dict.fromkeys(range(x.ndim), torch.export.Dim.AUTO) for n, x in found.items()} | _constants(inputs)
    if dynamic is False:
        return None
    unknown = dynamic.keys() - found.keys()
    if unknown:
        raise ValueError(f"dynamic names {sorted(unknown)[0]!r}; the inputs are {', '.join(found)}")
    return {n: dict.fromkeys(dynamic.get(n, ()), torch.export.Dim.DYNAMIC) for n in found} | _constants(inputs)


def _constants(inputs: Mapping[str, Any]) -> dict[str, None]:
    return dict.fromkeys(inputs.keys() - tensors(inputs).keys())


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


@contextmanager
def _quiet():
    """Without the notes that torch's exporter writes about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write(proto: ModelProto, path: str | Path) -> None:
    """Write a model whole or not at all."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a directory: give the name of a file")
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(proto.SerializeToString())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
