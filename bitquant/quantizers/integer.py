"""k-bit activation levels in LSQ form (reference/bit.md 1.2; contract 3)."""

import torch
from torch import Tensor

from .elastic import check_numbers
from .kernels import kernels_for

FLOAT_BITS = 32  # the width that passes floats through


def level_range(levels: str, bits: int) -> tuple[int, int]:
    """(lowest, highest) level: ``-2^(k-1) .. 2^(k-1) - 1`` signed, ``0 .. 2^k - 1`` unit; (-1, 1) at 1 bit signed."""
    if levels == "unit":
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class IntegerLevels(torch.autograd.Function):
    """``clip(rint(fl(fl(x + shift) / alpha)), low, high)``, IEEE division, half to even. With ``u = (x + shift) /
    alpha`` the gradient passes where ``low <= u <= high``; the scale gets ``-u`` there, beside its product's part."""

    @staticmethod
    def forward(ctx, x: Tensor, shift: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, shift, alpha)
        ctx.range = low, high
        if kernels := kernels_for(x, shift, alpha):
            return kernels.levels(x, shift, alpha, low, high)
        levels = torch.round((x + shift) / alpha)
        check_numbers(levels)  # also where inf - inf or 0 / 0 makes NaN
        return levels.clamp_(low, high)

    @staticmethod
    def backward(ctx, grad):
        x, shift, alpha = ctx.saved_tensors
        low, high = ctx.range
        if kernels := kernels_for(x, shift, alpha, grad):
            return *kernels.gradient(grad, x, shift, alpha, False, low, high), None, None
        u = (x + shift) / alpha
        dz = torch.where((u >= low) & (u <= high), grad / alpha, torch.zeros((), dtype=x.dtype, device=x.device))
        dshift = dz.sum_to_size(shift.shape) if ctx.needs_input_grad[1] else None
        dalpha = -(dz * u).sum_to_size(alpha.shape) if ctx.needs_input_grad[2] else None
        return dz, dshift, dalpha, None, None


def integer_levels(x: Tensor, shift: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    """Levels in {low..high} of ``x``, any shape, as fp32; ``shift`` and ``alpha`` broadcast against it."""
    return IntegerLevels.apply(x, shift, alpha, low, high)
