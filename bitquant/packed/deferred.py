"""The output of a packed linear layer while nobody has asked for its floats: a 1-bit layer behind it, or behind a ReLU,
takes its bits alone, and the floats are then never computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from bitquant import ops
from bitquant.ops.direct import is_direct

LEAST = 1 << 20
"""Outputs of fewer values stay in the caches: they are computed sooner than deferred."""

_relu, _relu_, _dropout = (getattr(torch.ops.aten, name).default for name in ("relu", "relu_", "dropout"))
_STAY = frozenset(
    {F.relu, F.relu_, F.dropout, torch.relu, torch.relu_, torch.dropout, Tensor.relu, Tensor.relu_}
    | {Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point, torch.is_floating_point}
    | {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")}
)
"""What a deferred tensor can be asked for without its floats."""

_computing = RLock()
_watched: list[tuple[torch.nn.Module, ref]] | None = None


class Product:
    """A product of bits that is yet to be computed: ``words`` int32 (..., ceil(K/32)) by ``layer``, a ``PackedLinear``
    of 1-bit inputs."""

    def __init__(self, layer, words: Tensor):
        self.layer, self.words = layer, words
        self.weight = layer.lanes, layer.scale, layer.bias
        self.versions = _versions(self.weight)
        if _watched is not None:
            _watched.append((layer, ref(self)))

    def floats(self) -> Tensor:
        """fp32 (..., N). Somebody reads them, so the layer computes them at once from now on. RuntimeError: the layer
        has other weights by now."""
        self.layer.defers_from = None
        with _disable_current_modes():  # of whoever reads them: the bits are no part of what it traces
            return ops.linear_of_bits(*self._arguments())

    def bits_for(self, layer, relu: bool) -> Tensor:
        """The words that ``layer``, a ``PackedLinear`` of 1-bit inputs, makes of the output or of its ReLU."""
        return ops.bits_of_linear(*self._arguments(), relu, layer.offset, not layer.signed)

    def _arguments(self) -> tuple:
        if _versions(self.weight) != self.versions:
            raise RuntimeError(
                "the weights of a packed linear layer were changed in place before its output was read: read the output"
                " first, or set the layer's defers_from to None"
            )
        layer, (lanes, scale, bias) = self.layer, self.weight
        return self.words, layer.columns, not layer.signed, lanes, layer.rows, scale, bias


class Deferred(Tensor):
    """fp32 (..., N) that has a shape and no memory. A ReLU of it is deferred too, a ``PackedLinear`` takes its bits,
    dropout in eval mode gives it back, and everything else computes it and works on the result, in place too."""

    @staticmethod
    def __new__(cls, product: Product, relu: bool = False):
        shape = (*product.words.shape[:-1], product.layer.rows)
        deferred = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=product.words.device)
        # not the names of methods of a tensor
        deferred._product, deferred._rectified, deferred._floats = product, relu, None
        return deferred

    def floats(self) -> Tensor:
        """The tensor that this one stands for, the same one each time."""
        with _computing:
            if self._floats is None:
                out = self._product.floats()
                self._floats = out.relu_() if self._rectified else out
        return self._floats

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        # numpy, pickle, dlpack and their like look for memory without an operation
        kwargs, x = kwargs or {}, args[0] if args else None
        if function not in _STAY or type(x) is not cls or x._floats is not None:
            args, kwargs = pytree.tree_map_only(cls, cls.floats, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        x = args[0] if args and type(args[0]) is cls else None
        if function is _dropout and x is not None and not args[2]:
            return x
        if function in (_relu, _relu_) and x._floats is None:
            if function is _relu:
                return cls(x._product, relu=True)
            x._rectified = True
            return x
        args, kwargs = pytree.tree_map_only(cls, cls.floats, (args, kwargs or {}))
        return function(*args, **kwargs)


def defer(layer, x: Tensor) -> Deferred | None:
    """The output of ``layer``, a ``PackedLinear`` of 1-bit inputs, for ``x`` (..., K). None where it must be computed:
    it is small, x is no plain fp32 tensor of the CPU, or something traces, wants a gradient or has a hook on the layer.
    ValueError: NaN in x."""
    least = layer.defers_from  # another thread may set it to None
    if least is None or layer._forward_hooks or not is_direct((x,)) or x.dtype is not torch.float32:
        return None
    if x.ndim == 0 or x.shape[-1] != layer.columns or x.numel() // layer.columns * layer.rows < least:
        return None
    return Deferred(Product(layer, ops.threshold_pack(x, layer.offset, not layer.signed)[0]))


def consume(layer, x: Deferred, bias: Tensor | None) -> Tensor | None:
    """What ``layer``, a ``PackedLinear`` of 1-bit inputs, makes of a deferred ``x`` (..., K); None where the floats of
    x are there or of another size. ValueError: x is NaN."""
    if x._floats is not None or x.shape[-1] != layer.columns:
        return None
    words = x._product.bits_for(layer, x._rectified)
    if layer.defers_from is not None and not layer._forward_hooks:
        return Deferred(Product(layer, words))
    return ops.linear_of_bits(words, layer.columns, not layer.signed, layer.lanes, layer.rows, layer.scale, bias)


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [0 if t is None or t.is_inference() else t._version for t in tensors]


@contextmanager
def watch() -> Iterator[list[tuple[torch.nn.Module, ref]]]:
    """Collects (layer, weak reference) of every ``Product`` made inside."""
    global _watched
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None
