"""Elastic binarization for training on the CPU, one pass each way: levels with their NaN check, all gradients."""

from __future__ import annotations

from struct import Struct

import torch
from torch import Tensor

from .library import OK, load

_ELASTIC = Struct("@4Q6q").pack  # bq_elastic of bitquant.h
_BLOCKS = 16  # of rows, whose sums are added in a fixed order; no more threads than that
NAN_MESSAGE = "NaN reached a binarizer: its input must be finite numbers (check the model's inputs and weights)"


def levels(x: Tensor, shift: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    """x fp32, any shape -> levels fp32 in {low..high} of that shape. ValueError for NaN."""
    x, shift = x.resolve_neg().contiguous(), shift.contiguous()
    out = x.new_empty(x.shape)
    if load().library.bq_elastic_levels(_call(x, shift, alpha, out, low, high, False), torch.get_num_threads()) != OK:
        raise ValueError(NAN_MESSAGE)
    return out


def gradient(
    grad: Tensor, x: Tensor, shift: Tensor, alpha: Tensor, smooth: bool, low: int, high: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (its shape), shift (its shape) and alpha (its shape, beside its product's part)."""
    x, shift, grad = x.resolve_neg().contiguous(), shift.contiguous(), grad.resolve_neg().contiguous()
    for_x = x.new_empty(x.shape)
    channels = x.shape[-1] if x.ndim else 1
    for_shift, for_alpha = x.new_empty(2, _BLOCKS, channels)
    load().library.bq_elastic_gradient(
        _call(x, shift, alpha, None, low, high, smooth), grad.data_ptr(), for_x.data_ptr(), for_shift.data_ptr(),
        for_alpha.data_ptr(), _BLOCKS, torch.get_num_threads(),
    )  # fmt: skip
    # blocks first: torch adds many numbers in an order that depends on its threads
    for_shift, for_alpha = for_shift.sum(0), for_alpha.sum(0)
    if shift.numel() == 1:
        for_shift = for_shift.sum()
    return for_x, for_shift.view(shift.shape), for_alpha.sum().view(alpha.shape)


def _call(x: Tensor, shift: Tensor, alpha: Tensor, out: Tensor | None, low: int, high: int, smooth: bool) -> bytes:
    channels = x.shape[-1] if x.ndim else 1
    return _ELASTIC(
        x.data_ptr(), shift.data_ptr(), alpha.data_ptr(), 0 if out is None else out.data_ptr(), x.numel() // channels,
        channels, shift.numel(), low, high, smooth,
    )  # fmt: skip
