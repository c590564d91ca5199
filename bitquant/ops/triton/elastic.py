"""Elastic binarization for training, one kernel each way: levels with their NaN check, all gradients in one read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import PLAIN, ceil_div
from .levels import ROUND


@triton.jit(debug=True)  # keeps the assertion in the compiled kernel
def levels_kernel(
    x_ptr, shift_ptr, alpha_ptr, out_ptr, elements, channels,
    SHIFT_STEP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < elements
    x = tl.load(x_ptr + i, mask=inside, other=0)
    shift = tl.load(shift_ptr + i % channels * SHIFT_STEP, mask=inside, other=0)
    alpha = tl.load(alpha_ptr)
    nan = (x != x) | (shift != shift)
    if HIGH > 1 or LOW < -1:
        quotient = tl.div_rn(x + shift, alpha)
        nan = nan | (quotient != quotient)
        r = tl.minimum(tl.maximum(quotient, LOW), HIGH)
        r = (r + ROUND) - ROUND
    elif LOW < 0:
        r = tl.where(x >= -shift, 1.0, -1.0)
    else:
        limit = alpha * 0.5 - shift
        nan = nan | (limit != limit)
        r = tl.where(x > limit, 1.0, 0.0)
    tl.device_assert(~(nan & inside), "NaN reached a binarizer")
    tl.store(out_ptr + i, r, mask=inside)


@triton.jit
def gradient_kernel(
    grad_ptr, x_ptr, shift_ptr, alpha_ptr, dx_ptr, dshift_ptr, dalpha_ptr, rows, channels, block_rows,
    SHIFT_STEP: tl.constexpr, SMOOTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A program takes ``block_rows`` rows of BC channels; its sums go to ``dshift`` (programs, channels) and
    ``dalpha`` (programs, channel blocks), added up afterwards in a fixed order."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    shift = tl.load(shift_ptr + c * SHIFT_STEP, mask=c < channels, other=0)[None, :]
    alpha = tl.load(alpha_ptr)
    dshift = tl.zeros((BC,), tl.float32)
    dalpha = tl.zeros((BC,), tl.float32)
    for first in range(0, block_rows, BR):
        r = tl.program_id(0) * block_rows + first + tl.arange(0, BR)
        inside = (r < rows)[:, None] & (c < channels)[None, :]
        at = r.to(tl.int64)[:, None] * channels + c[None, :]
        grad = tl.load(grad_ptr + at, mask=inside, other=0)
        u = tl.div_rn(tl.load(x_ptr + at, mask=inside, other=0) + shift, alpha)
        if SMOOTH:
            dx = tl.div_rn(tl.maximum(2 - 2 * tl.abs(u), 0.0) * grad, alpha)
        else:
            dx = tl.where((u >= LOW) & (u <= HIGH), tl.div_rn(grad, alpha), 0.0)
        tl.store(dx_ptr + at, dx, mask=inside)
        dshift += tl.sum(dx, 0)
        dalpha += tl.sum(dx * u, 0)
    tl.store(dshift_ptr + tl.program_id(0) * channels + c, dshift, mask=c < channels)
    tl.store(dalpha_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), -tl.sum(dalpha, 0))


def levels(x: Tensor, shift: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    """x fp32, any shape -> levels fp32 in {low..high} of that shape; NaN stops the device."""
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    levels_kernel[(ceil_div(x.numel(), 1024),)](
        x, shift, alpha, out, x.numel(), shift.numel(), int(shift.numel() > 1), low, high, BLOCK=1024, **PLAIN
    )
    return out


def gradient(
    grad: Tensor, x: Tensor, shift: Tensor, alpha: Tensor, smooth: bool, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (its shape), shift (its shape) and alpha (its shape, beside its product's part)."""
    x, grad = x.contiguous(), grad.contiguous()
    channels = x.shape[-1] if x.ndim else 1
    rows = x.numel() // channels
    block_rows = max(16, ceil_div(rows, 256))
    grid = (ceil_div(rows, block_rows), ceil_div(channels, 64))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dshift = torch.empty((grid[0], channels), dtype=x.dtype, device=x.device)
    dalpha = torch.empty(grid, dtype=x.dtype, device=x.device)
    gradient_kernel[grid](
        grad, x, shift, alpha, dx, dshift, dalpha, rows, channels, block_rows,
        int(shift.numel() > 1), smooth, low, high, BR=16, BC=64, **PLAIN,
    )  # fmt: skip
    dshift = dshift.sum(0) if shift.numel() > 1 else dshift.sum().view(shift.shape)
    return dx, dshift, dalpha.sum().view(alpha.shape)
