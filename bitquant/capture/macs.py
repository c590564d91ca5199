"""Multiply-accumulates of a run, counted below autograd on the ATen calls themselves."""

from __future__ import annotations

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_MATRIX = {  # operator: positions of the two factors, the result's last factor dimension is summed over
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.baddbmm: (1, 2),
    aten.addbmm: (1, 2),
    aten._addmm_activation: (1, 2),
    aten.mv: (0, 1),
    aten.addmv: (1, 2),
    aten.dot: (0, 1),
    aten._int_mm: (0, 1),
    aten._scaled_mm: (0, 1),
    aten._grouped_mm: (0, 1),
}
_RECURRENT = {aten.mkldnn_rnn_layer, aten._cudnn_rnn, aten.miopen_rnn}


def count(func, args, out) -> int:
    """Multiply-accumulates of one ATen call (0 for every operator that is no product)."""
    packet = func.overloadpacket
    if packet in _MATRIX:
        first, second = (args[i] for i in _MATRIX[packet])
        if packet is aten._grouped_mm and first.ndim == 2 and second.ndim == 3:
            return first.numel() * second.shape[-1]
        return first.numel() * (second.shape[-1] if second.ndim > 1 else 1)
    if packet in (aten.convolution, aten._convolution):
        source, weight, transposed = args[0], args[1], args[6]
        return (source if transposed else out).numel() * math.prod(weight.shape[1:])
    if "scaled_dot_product" in packet.__name__ and "backward" not in packet.__name__:
        query, key, value = args[:3]
        return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    if packet in _RECURRENT:
        steps = args[0].shape[0] * args[0].shape[1]
        weights = (a for a in args[1:] for a in (a if isinstance(a, (list, tuple)) else [a]))
        return steps * sum(w.numel() for w in weights if isinstance(w, torch.Tensor) and w.ndim == 2)
    return 0


class MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of everything that runs inside it.

    Compiled code runs eagerly under a dispatch mode, so that its products are counted too.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.total += count(func, args, out)
        return out
