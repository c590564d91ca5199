"""Elastic binarization as pure functions: integer levels forward, the straight-through gradients of BiT backward.

A quantized tensor is ``alpha * level`` with ``level`` in {-1, +1} (signed) or {0, 1} (unit). The functions here return
the levels alone, so that products run on exact integers and the scale is applied once afterwards (contract 1).
Thresholds follow contract 3: signed ``x >= -shift``, unit ``x > fl(alpha / 2 - shift)``.
Gradients follow ``reference/bit.md`` 1.2 with ``u = (x + shift) / alpha``.
"""

import torch
from torch import Tensor

from bitquant.ops.elastic import NAN_MESSAGE

from .kernels import kernels_for

ALPHA_FLOOR = 1e-5


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant (the LSQ gradient scale ``1 / sqrt(N * Qp)``)."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class FloorScale(torch.autograd.Function):
    """``max(alpha, 1e-5)`` whose gradient ignores the floor, so that a floored scale can recover."""

    @staticmethod
    def forward(ctx, alpha: Tensor) -> Tensor:
        return alpha.clamp(min=ALPHA_FLOOR)

    @staticmethod
    def backward(ctx, grad):
        return grad


def check_numbers(x: Tensor) -> None:
    """ValueError, on a GPU an assertion that stops the device, for NaN: it has no sign bit."""
    try:
        torch._assert_async(~torch.isnan(x).any(), NAN_MESSAGE)
    except RuntimeError as error:
        if NAN_MESSAGE not in str(error):
            raise
        raise ValueError(NAN_MESSAGE) from None


def _sum_to(grad: Tensor, like: Tensor) -> Tensor:
    return grad.sum_to_size(like.shape) if grad.shape != like.shape else grad


class SignedLevels(torch.autograd.Function):
    """``+1`` where ``x >= -shift``, else ``-1``."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, alpha: Tensor, smooth: bool) -> Tensor:
        ctx.save_for_backward(x, shift, alpha)
        ctx.smooth = smooth
        if kernels := kernels_for(x, shift, alpha):
            return kernels.levels(x, shift, alpha, -1, 1)
        check_numbers(x)
        return (x >= -shift).to(x.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx, grad):
        x, shift, alpha = ctx.saved_tensors
        if kernels := kernels_for(x, shift, alpha, grad):
            return *kernels.gradient(grad, x, shift, alpha, ctx.smooth, -1, 1)[:2], None, None
        distance = ((x + shift) / alpha).abs_()
        slope = (2 - 2 * distance).clamp_(min=0) if ctx.smooth else (distance <= 1).to(x.dtype)
        dz = slope.mul_(grad).div_(alpha)
        return dz, _sum_to(dz, shift) if ctx.needs_input_grad[1] else None, None, None


class UnitLevels(torch.autograd.Function):
    """``1`` where ``x > alpha / 2 - shift``, else ``0``; ``bits`` overrides the comparison where a rule of its own
    decides (attention in integers), with the same gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, alpha: Tensor, bits: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, shift, alpha)
        if bits is None and (kernels := kernels_for(x, shift, alpha)):
            return kernels.levels(x, shift, alpha, 0, 1)
        check_numbers(x)  # also where integers decide: the NaN of a scale shows in the softmax alone
        return (x > alpha / 2 - shift if bits is None else bits).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, shift, alpha = ctx.saved_tensors
        if kernels := kernels_for(x, shift, alpha, grad):
            return *kernels.gradient(grad, x, shift, alpha, False, 0, 1), None
        u = (x + shift) / alpha
        dz = torch.where((u >= 0) & (u <= 1), grad / alpha, torch.zeros((), dtype=x.dtype, device=x.device))
        dalpha = _sum_to(-(dz * u), alpha) if ctx.needs_input_grad[2] else None
        return dz, _sum_to(dz, shift) if ctx.needs_input_grad[1] else None, dalpha, None


def signed_levels(x: Tensor, shift: Tensor, alpha: Tensor, *, smooth: bool = False) -> Tensor:
    """Levels in {-1, +1} of ``x``, any shape, fp32; ``shift`` and ``alpha`` broadcast against it. sign(0) = +1.

    The gradient of the scale is that of the product ``alpha * level`` alone (no clipping), as in bit.md 1.2.
    """
    return SignedLevels.apply(x, shift, alpha, smooth)


def unit_levels(x: Tensor, shift: Tensor, alpha: Tensor, bits: Tensor | None = None) -> Tensor:
    """Levels in {0, 1} of ``x``, any shape, fp32; a tie at ``alpha / 2`` is 0. ``bits``: levels decided elsewhere."""
    return UnitLevels.apply(x, shift, alpha, bits)


def effective_scale(alpha: Tensor, elements: int) -> Tensor:
    """The scale the forward uses: floored at 1e-5, its gradient multiplied by ``1 / sqrt(elements)`` (Qp is 1)."""
    return FloorScale.apply(ScaleGradient.apply(alpha, max(elements, 1) ** -0.5))
