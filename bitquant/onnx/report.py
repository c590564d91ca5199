"""What an export prints: the check, size, load time and milliseconds beside float and dynamic int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import nn

from bitquant.onnx.check import Check, check
from bitquant.onnx.export import trace
from bitquant.onnx.graph import layers
from bitquant.onnx.runtime import Session, milliseconds, runtime
from bitquant.onnx.tracing import quiet
from bitquant.onnx.twin import float_twin


@dataclass(frozen=True)
class Measured:
    """``bytes`` of the file, ``load_ms`` to make a session of it, ``ms`` of one run on the example inputs."""

    bytes: int
    load_ms: float
    ms: float


@dataclass(frozen=True)
class Exported:
    """
    Args:
        layers: number of nodes that stand for packed layers. bytes: size of the file.
        check: None where there was none. rows: times by variant, the packed one first, None for one that could not be
            made; without a check there are none.
    """

    layers: int
    bytes: int
    check: Check | None = None
    rows: Mapping[str, Measured | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rows = {name: row and vars(row) for name, row in (self.rows or {}).items()}
        return {
            "layers": self.layers,
            "bytes": self.bytes,
            "check": None if self.check is None else vars(self.check),
            "onnxruntime": rows,
        }

    def __str__(self) -> str:
        if self.check is None:
            return f"{self.layers} packed layers, {self.bytes / 1e6:.2f} MB, not checked"
        from tabulate import tabulate

        found = self.check
        table = [
            (name, f"{row.bytes / 1e6:.2f}", f"{row.load_ms:.0f}", f"{row.ms:.2f}") if row else (name, "not available")
            for name, row in self.rows.items()
        ]
        head = ("ONNX Runtime", "MB", "load, ms", "run, ms")
        return (
            f"{found.layers} layers replayed, {found.mismatches} of {found.values} values differ; running free "
            f"{found.flipped:.2%} of all bits flip, cosine {found.cosine:.6f}\n\n"
            + tabulate(table, head, disable_numparse=True, colalign=("left", "right", "right", "right"))
        )


def unmeasured(proto: ModelProto) -> Exported:
    """The report of an export without a check."""
    return Exported(len(layers(proto)), proto.ByteSize())


def measured(
    model: nn.Module,
    nodes: nn.Module,
    proto: ModelProto,
    inputs: Mapping[str, Any],
    *,
    dynamic: Any = True,
    threads: int = 1,
) -> Exported:
    """Check a file, and time it against ONNX Runtime in float and in dynamic int8.

    Args:
        model: the packed one. nodes, proto: what ``build`` made of it. inputs: keyword arguments. dynamic: as for the
            export.

    Raises:
        ValueError: a layer gives other numbers in the runtime.
    """
    found = check(nodes, proto, inputs)
    if found.mismatches:
        raise ValueError(f"{found.mismatches} values differ in ONNX Runtime, most of them in {found.worst}")
    loaded = {"1 bit": Session(proto, threads), "float32": None, "dynamic int8": None}
    twin = _attempted(lambda: trace(float_twin(model), inputs, dynamic=dynamic))
    if twin is not None:
        loaded["float32"] = _attempted(lambda: _running(twin, inputs, threads))
        loaded["dynamic int8"] = _attempted(lambda: _running(dynamic_int8(twin), inputs, threads))
    times = milliseconds({name: session for name, session in loaded.items() if session}, inputs)
    rows = {name: session and Measured(session.bytes, session.load_ms, times[name]) for name, session in loaded.items()}
    return Exported(len(layers(proto)), proto.ByteSize(), found, rows)


def _attempted(make: Callable[[], Any]) -> Any:
    """What ``make`` gives, None where it fails: a comparison, which never costs the file that was asked for."""
    try:
        return make()
    except Exception:
        return None


def _running(model: ModelProto | bytes, inputs: Mapping[str, Any], threads: int) -> Session:
    session = Session(model, threads)
    session(inputs)
    return session


def dynamic_int8(model: ModelProto) -> bytes:
    """ONNX Runtime's own dynamic quantization of a float model."""
    runtime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "int8.onnx"
        with quiet():
            quantize_dynamic(model, target, weight_type=QuantType.QInt8)
        return target.read_bytes()
