"""ONNX Runtime: sessions, feeds and times."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

MISSING = 'the check of an exported file needs ONNX Runtime: pip install -c constraints.txt ".[onnx]", or leave it out'


def runtime():
    """The onnxruntime module. ModuleNotFoundError says how to install it."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError(MISSING) from None
    return onnxruntime


class Session:
    """One model loaded on the CPU.

    Args:
        model: the message, or the bytes of a file. threads: of one operator.

    ``load_ms``: what loading took, unpacking included. ``bytes``: of the file.
    """

    def __init__(self, model: ModelProto | bytes, threads: int = 1):
        onnxruntime = runtime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        data = model if isinstance(model, bytes) else model.SerializeToString()
        self.bytes, start = len(data), time.perf_counter()
        self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs by name, of which those that the file does not read are left out -> outputs by name."""
        return {n: torch.from_numpy(np.asarray(x)) for n, x in zip(self.outputs, self._run(inputs), strict=True)}

    def _run(self, inputs: Mapping[str, Tensor]) -> list:
        return self.session.run(None, {name: inputs[name].numpy() for name in self.inputs})


def milliseconds(sessions: Mapping[str, Session], inputs: Mapping[str, Tensor], *, seconds: float = 1.0) -> dict:
    """Shortest time of one run of each session on the same inputs, in milliseconds; they take turns, so that a busy
    moment of the machine hits them alike, at least 3 times after one that is not counted."""
    for session in sessions.values():
        session(inputs)
    times = {name: [] for name in sessions}
    end = time.perf_counter() + seconds * len(sessions)
    while len(next(iter(times.values()))) < 3 or time.perf_counter() < end:
        for name, session in sessions.items():
            start = time.perf_counter()
            session(inputs)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(found) for name, found in times.items()}
