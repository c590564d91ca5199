"""The CPU kernels of ``bitquant/ops/cpu`` behind the functions of ``naive``.

Outputs are allocated here and filled there; the only work left to Python is to hand over addresses, as a call over a
few tokens costs microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import torch
from torch import Tensor

from ..packing import words_for
from . import elastic as elastic  # what the quantizers of trained layers use
from . import naive
from .checks import output_size
from .library import GEOMETRY, INDEX, NAN, OK, TABLE, load

# The structures of bitquant.h, whose members all have eight bytes: addresses (Q), then whole numbers (q).
_LINEAR = Struct("@7Q8q3Q3q").pack
_CONVOLUTION = Struct("@7Q24q").pack
_ATTENTION = Struct("@5Q19qQ").pack
_FLOATS_OUT = 0, 0, 1, 0, 0  # of bq_linear, from out_words on


def threshold_pack(x: Tensor, threshold: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    k = x.shape[-1]
    rows, count, stride = _rows(x)
    threshold = threshold.contiguous()
    words = torch.empty((*x.shape[:-1], (k + 31) // 32), dtype=torch.int32)
    ones = torch.empty(x.shape[:-1], dtype=torch.int32)
    status = load().library.bq_threshold_pack(
        rows.data_ptr(), count, k, stride, threshold.data_ptr(), threshold.numel(), strict,
        words.data_ptr(), ones.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _check(status, "x")
    return words, ones


def binary_linear(
    x: Tensor, threshold: Tensor, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    return _multiply(x, threshold, None, 1, not strict, lanes, out_features, scale, bias)


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
    if bits == 32:  # a float product: torch's own
        return naive.integer_linear(x, offset, step, bits, signed, lanes, out_features, scale, bias)
    return _multiply(x, offset, None if bits == 1 else step, bits, signed, lanes, out_features, scale, bias)


def _multiply(
    x: Tensor,
    offset: Tensor,
    step: Tensor | None,
    bits: int,
    signed: bool,
    lanes: Tensor,
    n: int,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    rows, count, stride = _rows(x)
    offset, lanes, scale = offset.contiguous(), lanes.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    *lead, k = x.shape
    out = rows.new_empty(*lead, n)
    constants = offset.data_ptr(), _address(step), lanes.data_ptr(), scale.data_ptr(), _address(bias)
    sizes = n, offset.numel(), scale.numel(), bits, signed
    multiply(rows.data_ptr(), out.data_ptr(), constants, count, k, stride, sizes)
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def linear_of_bits(
    words: Tensor, features: int, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    words = words.contiguous()
    out = scale.new_empty(*words.shape[:-1], out_features)
    _multiply_words(words, features, strict, lanes, out_features, scale, bias, out.data_ptr(), _FLOATS_OUT)
    return out


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
    words, next_threshold = words.contiguous(), next_threshold.contiguous()
    out = words.new_empty(*words.shape[:-1], words_for(out_features))
    then = out.data_ptr(), next_threshold.data_ptr(), next_threshold.numel(), not next_strict, relu
    _multiply_words(words, features, strict, lanes, out_features, scale, bias, 0, then)
    return out


def _multiply_words(
    words: Tensor,
    k: int,
    strict: bool,
    lanes: Tensor,
    n: int,
    scale: Tensor,
    bias: Tensor | None,
    out: int,
    then: tuple[int, ...],
) -> None:
    lanes, scale = lanes.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    constants = 0, 0, lanes.data_ptr(), scale.data_ptr(), _address(bias)
    rows = words.numel() // words.shape[-1]
    multiply(0, out, constants, rows, k, 0, (n, 1, scale.numel(), 1, not strict), (words.data_ptr(), *then))


def multiply(
    x: int,
    out: int,
    constants: tuple[int, ...],
    rows: int,
    k: int,
    stride: int,
    sizes: tuple[int, ...],
    bits: tuple[int, ...] = (0, *_FLOATS_OUT),
) -> None:
    """``bq_multiply`` on addresses: ``constants`` from the offset to the bias, ``sizes`` from n on, ``bits`` from
    x_words on."""
    call = _LINEAR(x, out, *constants, rows, k, stride, *sizes, *bits)
    _check(load().library.bq_multiply(call, torch.get_num_threads()), "x")


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
    dtype, space = x.dtype, x.shape[2:]
    size = output_size(space, kernel_size, stride, padding, dilation)
    out = torch.empty((x.shape[0], out_channels, *size), dtype=torch.float32)
    x = _fp32(x)
    if len(space) == 1:  # an image of one row
        x = x.unsqueeze(2)
        kernel_size, stride, dilation, padding = [1, *kernel_size], [1, *stride], [1, *dilation], [0, 0, *padding]
    offset, lanes, scale = offset.contiguous(), lanes.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    call = _CONVOLUTION(
        x.data_ptr(), out.data_ptr(), offset.data_ptr(), _address(step), lanes.data_ptr(), scale.data_ptr(),
        _address(bias), *x.shape, out_channels, groups, offset.numel(), scale.numel(), *x.stride(), *kernel_size,
        *stride, *dilation, *padding[::2], *padding[1::2], bits, signed,
    )  # fmt: skip
    _check(load().library.bq_convolve(call, torch.get_num_threads()), "x")
    return out if dtype == torch.float32 else out.to(dtype)


def binary_attention_rowmax(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, margin: Tensor, scale: Tensor
) -> Tensor:
    return _attend(load().library.bq_attention_rowmax, q, k, v, keep, scale, margin.data_ptr())


def binary_attention_table(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, table: Tensor, ratio: Tensor, scale: Tensor
) -> Tensor:
    table = table.contiguous()
    return _attend(load().library.bq_attention_table, q, k, v, keep, scale, table.data_ptr(), ratio.data_ptr())


def _attend(function, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, scale: Tensor, *rule: int) -> Tensor:
    dtype = q.dtype
    q, q_strides = _heads(q)
    k, k_strides = _heads(k)
    v, v_strides = _heads(v)
    b, h, tq, d = q.shape
    _, _, tk, dv = v.shape
    strides = (0, 0, 0, 0)
    if keep is not None:
        keep = keep.expand(b, h, tq, tk)
        strides = keep.stride()
    out = q.new_empty(b, h, tq, dv)
    call = _ATTENTION(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), _address(keep), out.data_ptr(), b, h, tq, tk, d, dv,
        *q_strides, *k_strides, *v_strides, *strides, scale.data_ptr(),
    )  # fmt: skip
    _check(function(call, *rule, torch.get_num_threads()), "q, k or v")
    return out if dtype == torch.float32 else out.to(dtype)


def embedding(indices: Tensor, packed: Tensor, bits: int, dim: int, scale: Tensor) -> Tensor:
    flat = indices.to(torch.int64).contiguous()
    packed, scale = packed.contiguous(), scale.contiguous()
    out = torch.empty((*indices.shape, dim), dtype=torch.float32)
    rows = packed.shape[0] // bits
    status = load().library.bq_embedding(
        flat.data_ptr(), flat.numel(), packed.data_ptr(), rows, bits, dim, scale.data_ptr(), scale.numel(),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status == INDEX:
        raise IndexError(f"an index is outside the embedding's {rows} rows (0 to {rows - 1})")
    _check(status, "packed")
    return out


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """``x`` in fp32 as rows with a dense last dimension, their number and the stride between them."""
    x = _fp32(x)
    if x.ndim == 2:
        row, column = x.stride()
        if column == 1:
            return x, len(x), row
    k = x.shape[-1]
    return x.contiguous(), x.numel() // k, k


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.to(torch.float32)


def _heads(x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """``x`` in fp32 with a dense last dimension, and the strides of the others."""
    if x.dtype is not torch.float32:
        x = x.to(torch.float32)
    *strides, step = x.stride()
    if step == 1:
        return x, strides
    x = x.contiguous()
    return x, x.stride()[:3]


def _check(status: int, name: str) -> None:
    if status == OK:
        return
    if status == NAN:
        raise ValueError(naive.nan_message(name))
    if status == TABLE:
        raise ValueError("table entries must be 0 to 4096 and the ratio not negative")
    if status == GEOMETRY:
        raise ValueError("a size, a stride or a product of sizes is too large for the CPU kernels")
    raise MemoryError("no memory for the scratch space of a CPU kernel")
