"""What a quantized model computes, by forward hooks: capture describes float models only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bitquant.capture import Site
from bitquant.capture.macs import MacCounter
from bitquant.capture.run import run
from bitquant.nn.low_rank import LowRank
from bitquant.packed.structure import KINDS
from bitquant.packed.weights import PackedWeight

_FLOAT = {nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d", nn.Embedding: "embedding"}
_CALLED = {"Linear": "linear", "FunctionalLinear": "linear_fn", "Conv": "conv", "Embedding": "embedding",
           "Attention": "attention", "Matmul": "matmul", "Einsum": "einsum"}  # fmt: skip
_FUNCTIONAL = ("linear_fn", "attention", "matmul", "einsum")
REST = "products outside layers"


def quantized_sites(model: nn.Module, example_inputs: Any) -> tuple[list[Site], set[str]]:
    """The products of one run of a student or packed model, and the paths of those that are quantized.

    Float products that no layer of their own computes are one site, ``REST``.

    Raises:
        CaptureError: the model does not run on ``example_inputs``.
    """
    recorder = _Recorder()
    handles = []
    for path, module in model.named_modules():
        kind = quantized_kind(module)
        plain = next((name for cls, name in _FLOAT.items() if isinstance(module, cls)), None)
        if kind or plain:
            handles.append(module.register_forward_pre_hook(recorder.enter, prepend=True))
            handles.append(module.register_forward_hook(recorder.leave(path, kind, plain), with_kwargs=True))
    try:
        with recorder.counter:
            run(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    rest = recorder.counter.total - recorder.inside
    sites = [*recorder.sites.values(), *([Site(REST, "", "", "matmul", "unknown", macs=rest)] if rest else [])]
    return sites, recorder.quantized


def quantized_kind(module: nn.Module) -> str | None:
    """The name of a 1-bit module's type, such as "BitLinear" or "PackedConv"; None for any other module."""
    return next((name for name, cls in KINDS.items() if isinstance(module, cls)), None)


class _Recorder:
    def __init__(self):
        self.counter = MacCounter()
        self.sites: dict[str, Site] = {}
        self.quantized: set[str] = set()
        self.inside = 0  # float multiply-accumulates, as PyTorch counts them, inside the hooked modules
        self._start = 0

    def enter(self, module, args):
        self._start = self.counter.total

    def leave(self, path: str, kind: str | None, plain: str | None):
        owner, _, name = path.rpartition(".")

        def record(module, args, kwargs, out):
            here = self.counter.total - self._start
            self.inside += here
            shapes = tuple(tuple(a.shape) for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
            called = _CALLED[kind.removeprefix("Bit").removeprefix("Packed")] if kind else plain
            macs = _macs(module, called, shapes, out) if kind else here
            if path not in self.sites:
                place = (owner, name) if called in _FUNCTIONAL else (path, "")
                weight = f"{owner}.{module.parameter}".lstrip(".") if called == "linear_fn" else None
                self.sites[path] = Site(path, *place, called, "weight", shapes=shapes, parameters=(None, weight))
            if kind:
                self.quantized.add(path)
            self.sites[path].macs += macs
            self.sites[path].calls += 1
            if kind and isinstance(beside := getattr(module, "float_path", None), LowRank):
                place = f"{path}.float_path"
                site = self.sites.setdefault(place, Site(place, path, "", "linear", "low-rank", shapes=shapes))
                site.macs += beside.macs(out.numel() // beside.up.shape[0])
                site.calls += 1

        return record


def _macs(module: nn.Module, kind: str, shapes: tuple, out: torch.Tensor) -> int:
    if kind == "embedding":
        return 0
    if kind == "attention":
        query, key, value = shapes[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if kind == "conv":
        return out.numel() * (module.columns if isinstance(module, PackedWeight) else module.weight[0].numel())
    return out.numel() * shapes[0][-1]
