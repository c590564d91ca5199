"""The functions of ``naive`` on a GPU: floats in and out, kernels of this package in between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import naive
from ..checks import output_size
from . import elastic as elastic  # what the quantizers of trained layers use
from . import fused
from .config import settings
from .device import device
from .fused import Weight, Words
from .launch import PLAIN, ceil_div, power_of_two
from .levels import level_product, quantize


def threshold_pack(x: Tensor, threshold: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    words = ceil_div(x.shape[-1], 32)
    packed = _packed(x, threshold, strict, words)
    return packed.words.view(*x.shape[:-1], words), packed.ones.view(x.shape[:-1])


def binary_linear(
    x: Tensor, threshold: Tensor, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    weight = Weight(lanes, out_features, x.shape[-1])
    bias = None if bias is None else bias.contiguous()
    out = fused.linear(_packed(x, threshold, strict), weight, scale.contiguous(), bias, unit=strict, dtype=x.dtype)
    return out.view(*x.shape[:-1], out_features)


def integer_linear(
    x: Tensor,
    offset: Tensor,
    step: Tensor | None,
    bits: int,
    signed: bool,
    lanes: Tensor,
    out_features: int,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if bits == 1:
        return binary_linear(x, offset, not signed, lanes, out_features, scale, bias)
    if bits == 32:  # a float product: torch's own
        return naive.integer_linear(x, offset, step, bits, signed, lanes, out_features, scale, bias)
    rows = _rows(x)
    out = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    levels = _quantized(rows.T.unsqueeze(0), offset, step, bits, signed, places=False)
    _multiply(
        levels, (1, rows.shape[0]), lanes, out.view(1, -1, out_features).transpose(1, 2).unsqueeze(2),
        [1, 1], [1, 1], [1, 1], [0, 0], 1, bits == 8 and not signed, scale, bias,
    )  # fmt: skip
    return out


def convolution(
    x: Tensor,
    offset: Tensor,
    step: Tensor | None,
    bits: int,
    signed: bool,
    lanes: Tensor,
    out_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if bits == 32 or x.dtype == torch.float64:  # a float64 that is no zero may be one in float32
        return naive.convolution(
            x, offset, step, bits, signed, lanes, out_channels, kernel_size, stride, padding, dilation, groups,
            scale, bias,
        )  # fmt: skip
    size = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    out = torch.empty((x.shape[0], out_channels, *size), dtype=x.dtype, device=x.device)
    levels = _quantized(x.flatten(2), offset, step, bits, signed, places=True)
    image, before = out, padding[::2]
    height, width = (1, *x.shape[2:])[-2:]
    if len(size) == 1:  # an image of one row
        image = out.unsqueeze(2)
        kernel_size, stride, dilation, before = [1, *kernel_size], [1, *stride], [1, *dilation], [0, *before]
    _multiply(
        levels, (height, width), lanes, image, kernel_size, stride, dilation, before, groups,
        bits == 8 and not signed, scale, bias,
    )  # fmt: skip
    return out


def binary_attention_rowmax(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, margin: Tensor, scale: Tensor
) -> Tensor:
    return _attend(q, k, v, keep, (margin,), scale)


def binary_attention_table(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, table: Tensor, ratio: Tensor, scale: Tensor
) -> Tensor:
    return _attend(q, k, v, keep, (table.contiguous(), ratio), scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, rule: tuple[Tensor, ...], scale: Tensor) -> Tensor:
    (batch, heads, queries, d), keys, dv = q.shape, k.shape[2], v.shape[3]
    words = [_heads(x, scale) for x in (q, k, v)]
    return fused.attention(*words, (batch, heads, queries, keys, d, dv), keep, rule, scale, q.dtype)


def _heads(x: Tensor, like: Tensor) -> Words:
    """The signs of (B, H, T, d) as contiguous words."""
    _, heads, length, d = x.shape
    packed = _packed(x, torch.zeros(1, device=like.device), False)
    words = packed.words.shape[1]
    return Words(packed.words, (heads * length * words, length * words, words))


def _packed(x: Tensor, threshold: Tensor, strict: bool, words: int | None = None) -> fused.Bits:
    return fused.pack(_rows(x), threshold.contiguous(), strict, words)


def _rows(x: Tensor) -> Tensor:
    """(..., K) -> (rows, K), dense along K."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _quantized(x: Tensor, offset: Tensor, step: Tensor | None, bits: int, signed: bool, *, places: bool) -> Tensor:
    """x (batch, channels, positions) -> int8 levels (batch, positions, channels)."""
    batch, channels, positions = x.shape
    if x.device.type == "cpu":  # the interpreter drops the kernel's assertion
        naive.levels_of(x.movedim(1, -1), offset, step, bits, signed)
    out = torch.empty((batch, positions, channels), dtype=torch.int8, device=x.device)
    if out.numel():
        block = 32
        quantize[(batch * ceil_div(positions, block),)](
            x, offset.contiguous(), step, out, positions, channels, *x.stride(),
            int(offset.numel() > 1), bits, signed, places, block, min(64, power_of_two(channels)), **PLAIN,
        )  # fmt: skip
    return out


def _multiply(
    levels: Tensor,
    size: tuple[int, int],
    lanes: Tensor,
    out: Tensor,
    kernel_size: list[int],
    stride: list[int],
    dilation: list[int],
    before: list[int],
    groups: int,
    unsigned_byte: bool,
    scale: Tensor,
    bias: Tensor | None,
) -> None:
    """Fill ``out`` (batch, columns, height, width), its positions evenly apart."""
    batch, columns, out_height, out_width = out.shape
    channels = levels.shape[2]
    positions, group_columns = batch * out_height * out_width, columns // groups
    if positions == 0:
        return
    launch = settings("level_product", device(levels.device), positions, group_columns)
    grid = ceil_div(positions, launch["BM"]), groups * ceil_div(group_columns, launch["BN"])
    level_product[grid](
        levels, lanes.contiguous(), scale.contiguous(), None if bias is None else bias.contiguous(), out,
        positions, group_columns, channels, channels // groups, math.prod(kernel_size) * (channels // groups),
        lanes.shape[1], *size, out_height, out_width, kernel_size[1], *stride, *dilation, *before,
        out.stride(0), out.stride(1), out.stride(3),
        SCALE_STEP=int(scale.numel() > 1), UNSIGNED_BYTE=unsigned_byte, **launch, **PLAIN,
    )  # fmt: skip
