"""A linear product of a layer, whose weight and quantizer seldom change: they are checked once, so that a call over a
few rows, which takes a microsecond, has only its input to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, dispatch, native
from .direct import is_direct


class BoundLinear:
    """``binary_linear`` (at 1 bit) or ``integer_linear`` by the shortest way to the CPU kernels.

    Copies start unbound, as their tensors lie elsewhere.

    Args:
        k, n, bits, signed: features in and out, width and kind of the levels, as in ``integer_linear``.
    """

    def __init__(self, k: int, n: int, bits: int, signed: bool):
        self._fixed = k, n, bits, signed
        self._bound = None, (), (None,) * 5

    def __call__(
        self, x: Tensor, offset: Tensor, step: Tensor | None, lanes: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor | None:
        """The product, (..., k) -> (..., n), or None where the op has to run: a device, dtype, layout, backend or
        argument that is not for this, or something that compiles, traces or wants a gradient. ValueError: NaN in x."""
        if not is_direct((x, bias)) or x.dtype is not torch.float32 or not x.is_contiguous():
            return None
        at = (
            offset.data_ptr(),
            0 if step is None else step.data_ptr(),
            lanes.data_ptr(),
            scale.data_ptr(),
            0 if bias is None else bias.data_ptr(),
        )
        bound, sizes, (was_offset, was_step, was_lanes, was_scale, was_bias) = self._bound
        same = offset is was_offset and step is was_step and lanes is was_lanes and scale is was_scale
        if not same or bias is not was_bias or at != bound:
            sizes = self._bind(at, offset, step, lanes, scale, bias)
        if not sizes or not x.dim() or dispatch.current() is not native:
            return None
        *lead, k = x.shape
        if k != self._fixed[0] or not checks.has_memory(x):
            return None
        out = x.new_empty(*lead, sizes[0])
        native.multiply(x.data_ptr(), out.data_ptr(), at, x.numel() // k, k, k, sizes)
        return out

    def _bind(self, at: tuple[int, ...], *tensors: Tensor | None) -> tuple[int, ...]:
        """What the kernel is told of these tensors, which lie at the addresses ``at``; empty where it cannot run."""
        offset, step, lanes, scale, bias = tensors
        k, n, bits, signed = self._fixed
        sizes = ()
        held = (t for t in tensors if t is not None)
        if bits <= 8 and is_direct(tensors) and all(t.is_contiguous() and checks.has_memory(t) for t in held):
            checks.quantizer(bits, step, k)
            checks.vector(offset, k, "offset")
            checks.weight(k, lanes, n, scale, bias)
            sizes = n, offset.numel(), scale.numel(), bits, signed
        self._bound = at, sizes, tensors  # held, so that no other one can be taken for them
        return sizes

    def __reduce__(self):
        return BoundLinear, self._fixed
