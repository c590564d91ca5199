"""Export to ONNX: packed layers as model-local functions over packed bits, checked in ONNX Runtime.

Data flows layers -> functions -> graph -> check: ``layers`` makes every packed layer one node, ``export`` traces the
model, ``graph`` finishes the file, ``check`` replays it, ``comparison`` times it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bitquant.atomic import replacing_file
from bitquant.coverage import is_packed
from bitquant.onnx.report import Exported

FLAVOURS = ("standard", "qonnx")


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic: bool | Mapping[str, Mapping[int, str]] = True,
    check: bool = True,
    fold: bool = False,
    flavour: str = "standard",
    threads: int = 1,
) -> Exported:
    """Write a packed model as one ONNX file (opset 20, IR 10) that stock runtimes run, and check it in ONNX Runtime.

    Args:
        model: after ``convert_``; not changed.
        example_inputs: a tensor, a tuple, or a dict of keyword arguments; an optional input that is left out is left
            out of the file too.
        path: replaced whole or not at all; its folder is made.
        dynamic: True: every dimension that the model lets vary does; False: none; or which dimensions must, by input:
            ``{"input_ids": [0, 1]}``.
        check: compare with the packed model and time it against ONNX Runtime in float and in dynamic int8, where it
            can run these; the file is written only if every layer gives equal numbers.
        fold: store int8 signs, eight times the size, which load faster.
        flavour: ``"standard"``, or ``"qonnx"``: BipolarQuant nodes and float products for FPGA tools, not checked.
        threads: of the runtime while it is timed.

    Returns:
        what was measured; ``print`` shows a table.

    Raises:
        ValueError: the model is not packed, or not float32; a layer that cannot be exported, named; a model that torch
            cannot trace; layers that differ in the runtime.
        OSError: ``path`` cannot be written, known before the model is traced.
        ModuleNotFoundError: onnxscript, or for the check onnxruntime, is not installed.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"flavour must be one of {', '.join(FLAVOURS)}, not {flavour!r}")
    if not is_packed(model):
        raise ValueError("export_onnx takes a packed model: call convert_ first")
    from bitquant.onnx.inputs import keywords
    from bitquant.onnx.report import measured, unmeasured

    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"output {path} is a directory: give the name of a file")
    inputs = keywords(model, example_inputs)
    with replacing_file(path) as fresh:
        if flavour == "qonnx":
            from bitquant.onnx.qonnx import build_qonnx

            proto = build_qonnx(model, inputs, dynamic=dynamic)
            exported = unmeasured(proto)
        else:
            from bitquant.onnx.export import build

            nodes, proto = build(model, inputs, dynamic=dynamic, fold=fold)
            exported = unmeasured(proto)
            if check:
                exported = measured(model, nodes, proto, inputs, dynamic=dynamic, threads=threads)
        fresh.write_bytes(proto.SerializeToString())
    return exported
