"""The definition of every op in plain torch: what all other backends must equal bit for bit (contract 1).

Products of +-1 and {0,1} are done in fp32, exact because every partial sum is an integer below 2^24; autocast is off
around them, as a bf16 product is exact only to 256. Arguments are checked by ``ops.checks`` before they come here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .. import packing
from ..memory_layout import contiguous
from . import rules


def threshold_pack(x: Tensor, threshold: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    bits = _compare(x, threshold, strict)
    words = packing.to_words(packing.pack_bits(bits), x.shape[-1])
    return words, bits.sum(-1, dtype=torch.int32)


def binary_linear(
    x: Tensor, threshold: Tensor, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    bits = _compare(x, threshold, strict)
    levels = bits.to(torch.float32) if strict else _plus_minus(bits)
    return _multiply(levels, lanes, out_features, scale, bias).to(x.dtype)


def linear_of_bits(
    words: Tensor, features: int, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    signs = _signs_of_words(words.reshape(-1, words.shape[-1]), features)
    out = _multiply(signs.clamp(min=0) if strict else signs, lanes, out_features, scale, bias)
    return out.view(*words.shape[:-1], out_features)


def bits_of_linear(
    words: Tensor,
    features: int,
    strict: bool,
    lanes: Tensor,
    out_features: int,
    scale: Tensor,
    bias: Tensor | None,
    relu: bool,
    next_threshold: Tensor,
    next_strict: bool,
) -> Tensor:
    out = linear_of_bits(words, features, strict, lanes, out_features, scale, bias)
    return threshold_pack(out.relu_() if relu else out, next_threshold, next_strict)[0]


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
    return _multiply(_levels(x, offset, step, bits, signed), lanes, out_features, scale, bias).to(x.dtype)


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
    space = len(kernel_size)
    by_channel = x.movedim(1, -1)
    valid = (by_channel != 0).any(-1, keepdim=True)
    levels = contiguous((_levels(by_channel, offset, step, bits, signed) * valid).movedim(-1, 1))
    taps = math.prod(kernel_size)
    signs = _signs_of_words(packing.from_lanes(lanes, out_channels), taps * (x.shape[1] // groups))
    weight = contiguous(signs.view(out_channels, *kernel_size, -1).movedim(-1, 1))
    before, after = padding[::2], padding[1::2]
    if before != after:
        sides = [side for i in reversed(range(space)) for side in (before[i], after[i])]
        levels = torch.nn.functional.pad(levels, sides)
        before = [0] * space
    convolve = torch.nn.functional.conv1d if space == 1 else torch.nn.functional.conv2d
    with torch.autocast(x.device.type, enabled=False):
        acc = contiguous(convolve(levels, weight, None, stride, before, dilation, groups))
    out = acc * scale.view(-1, *[1] * space)
    return (out if bias is None else out + bias.view(-1, *[1] * space)).to(x.dtype)


def binary_attention_rowmax(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, margin: Tensor, scale: Tensor
) -> Tensor:
    taken = rules.taken_by_row_max(_scores(q, k), keep, margin)
    count = taken.sum(-1, keepdim=True).to(torch.float32)
    return _taken_values(taken, v).div_(count.clamp_(min=1)).mul_(scale).to(q.dtype)


def binary_attention_table(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, table: Tensor, ratio: Tensor, scale: Tensor
) -> Tensor:
    taken = rules.taken_by_table(_scores(q, k), keep, table, ratio)
    return _taken_values(taken, v).mul_(scale).to(q.dtype)


def embedding(indices: Tensor, packed: Tensor, bits: int, dim: int, scale: Tensor) -> Tensor:
    flat = indices.reshape(-1).to(torch.int64)
    rows = packed.shape[0] // bits
    if flat.numel() and not bool(((flat >= 0) & (flat < rows)).all()):
        raise IndexError(f"an index is outside the embedding's {rows} rows (0 to {rows - 1})")
    tables = packed.reshape(bits, rows, packed.shape[1])
    levels = sum(2**bit * _signs_of_bytes(table[flat], dim) for bit, table in enumerate(tables))
    out = levels * (scale if scale.numel() == 1 else scale[flat].unsqueeze(-1))
    return out.view(*indices.shape, dim)


def _levels(x: Tensor, offset: Tensor, step: Tensor | None, bits: int, signed: bool) -> Tensor:
    """fp32 levels of x: two values at 1 bit, LSQ levels at 2 to 8, x itself at 32."""
    if bits == 1:
        compared = _compare(x, offset, not signed)
        return _plus_minus(compared) if signed else compared.to(torch.float32)
    values = x.to(torch.float32)
    _reject_nan(values, "x")
    if bits == 32:
        return values
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return torch.round((values + offset) / step).clamp_(low, high)


def _compare(x: Tensor, threshold: Tensor, strict: bool) -> Tensor:
    values = x.to(torch.float32)
    _reject_nan(values, "x")
    return values > threshold if strict else values >= threshold


def _reject_nan(values: Tensor, name: str) -> None:
    if bool(torch.isnan(values).any()):
        raise ValueError(f"{name} holds NaN, which has no sign bit")


def _plus_minus(bits: Tensor) -> Tensor:
    return bits.to(torch.float32).mul_(2).sub_(1)


@lru_cache(maxsize=8)
def _sign_table(device: torch.device) -> Tensor:
    """fp32 (256, 8): the eight signs of every byte value. A look-up is the fastest way torch has to expand bits."""
    with torch.inference_mode(False):
        values = torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(-1)
        return _plus_minus(packing.unpack_bits(values, 8))


def _signs_of_bytes(packed: Tensor, k: int) -> Tensor:
    """uint8 (rows, bytes) -> fp32 (rows, k) of +-1."""
    table = _sign_table(packed.device)
    return table.index_select(0, packed.reshape(-1).to(torch.int32)).view(packed.shape[0], 8 * packed.shape[1])[:, :k]


def _multiply(levels: Tensor, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None) -> Tensor:
    """levels fp32 (..., K) -> ``fl(fl(acc * scale) + bias)``, fp32 (..., N)."""
    weight = _signs_of_words(packing.from_lanes(lanes, out_features), levels.shape[-1]).contiguous()
    with torch.autocast(levels.device.type, enabled=False):
        # at 32 bits the sums are rounded: the call and the layout of the layer that was trained
        rows = levels.reshape(-1, levels.shape[-1])
        out = torch.nn.functional.linear(rows, weight).mul_(scale).view(*levels.shape[:-1], out_features)
    return out if bias is None else out.add_(bias)


def _signs_of_words(words: Tensor, k: int) -> Tensor:
    return _signs_of_bytes(words.view(torch.uint8), k)


def _sign(x: Tensor, name: str) -> Tensor:
    values = x.to(torch.float32)
    _reject_nan(values, name)
    return _plus_minus(values >= 0)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """fp32 (B, H, Tq, Tk): the integer scores."""
    with torch.autocast(q.device.type, enabled=False):
        return _sign(q, "q") @ _sign(k, "k").transpose(-1, -2)


def _taken_values(taken: Tensor, v: Tensor) -> Tensor:
    with torch.autocast(v.device.type, enabled=False):
        return taken.to(torch.float32) @ _sign(v, "v")
