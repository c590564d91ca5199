"""How a training step multiplies levels: forward in int8, exactly; gradients in bfloat16 where that was asked for.

Both are faster than fp32 on processors with instructions for them, and change nothing outside of training: without
gradients, elsewhere, and under a compiler the product is ``F.linear``.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitquant.ops.direct import is_watched
from bitquant.processor import bfloat16_is_fast, int8_is_fast
from bitquant.quantizers import ActivationQuantizer, WeightQuantizer

_gradients: ContextVar[torch.dtype] = ContextVar("gradients", default=torch.float32)


@contextmanager
def fast_gradients(wanted: bool = True):
    """Context in which gradients are multiplied with levels in bfloat16, if ``wanted`` and where that is faster: they
    and the results are rounded to it. The levels, of at most 8 bits, are exact in it."""
    token = _gradients.set(torch.bfloat16 if wanted and bfloat16_is_fast() else torch.float32)
    try:
        yield
    finally:
        _gradients.reset(token)


class IntegerProduct(torch.autograd.Function):
    """``levels @ weight.T`` of integers in int8's range: fp32 (rows, K), (N, K) -> fp32 (rows, N); K of 2 and more."""

    @staticmethod
    def forward(ctx, levels: Tensor, weight: Tensor, gradients: torch.dtype) -> Tensor:
        levels, weight = levels.to(torch.int8), weight.to(torch.int8)
        ctx.save_for_backward(levels, weight)
        ctx.gradients = gradients
        return torch._int_mm(levels, weight.t()).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        levels, weight = (saved.to(ctx.gradients) for saved in ctx.saved_tensors)
        grad = grad.to(ctx.gradients)
        for_levels = (grad @ weight).float() if ctx.needs_input_grad[0] else None
        for_weight = (grad.t() @ levels).float() if ctx.needs_input_grad[1] else None
        return for_levels, for_weight, None


def in_int8(levels: Tensor, *, inputs: ActivationQuantizer, weights: WeightQuantizer) -> bool:
    """Whether ``IntegerProduct`` multiplies what these two quantizers gave: in training, on processors made for it."""
    return (
        torch.is_grad_enabled()
        and not is_watched()
        and type(levels) in (Tensor, nn.Parameter)
        and levels.device.type == "cpu"
        and weights.bits == 1
        and inputs.range[1] <= 127
        and levels.ndim > 1
        and levels.numel() > 0
        and levels.shape[-1] > 1  # torch._int_mm reads beyond a single column
        and int8_is_fast()
    )


def integer_product(levels: Tensor, weight: Tensor) -> Tensor:
    """``F.linear(levels, weight)`` of integers as ``in_int8`` asks for: fp32 (..., K), (N, K) -> fp32 (..., N)."""
    return IntegerProduct.apply(levels.flatten(0, -2), weight, _gradients.get()).unflatten(0, levels.shape[:-1])


def rows_product(levels: Tensor, weight: Tensor) -> Tensor:
    """``F.linear(levels, weight)``, whatever the strides and ``requires_grad`` of both: where they are floats, torch
    rounds a product of three dimensions by them, but not one of two."""
    rows = levels.reshape(-1, levels.shape[-1])
    return F.linear(rows, weight).view(*levels.shape[:-1], weight.shape[0])


def level_product(levels: Tensor, weight: Tensor, *, inputs: ActivationQuantizer, weights: WeightQuantizer) -> Tensor:
    """``F.linear(levels, weight)`` of what the two quantizers gave: fp32 (..., K), (N, K) -> fp32 (..., N)."""
    multiply = integer_product if in_int8(levels, inputs=inputs, weights=weights) else rows_product
    return multiply(levels, weight)
