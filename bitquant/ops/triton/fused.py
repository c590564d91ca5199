"""Layers with packed activations between them: what an encoder that never leaves bits is built from.

Every function takes and gives tensors of one GPU (or CPU tensors in Triton's interpreter) and works inside a CUDA
graph. NaN stops the device, as an index error of torch does, with "NaN reached a binarizer".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import naive
from .attention import attention as attention_kernel
from .b1 import b1
from .config import block, settings
from .device import choose, device, require
from .int8 import int8
from .launch import PLAIN, ceil_div, power_of_two
from .norm import layer_norm as layer_norm_kernel
from .pack import count_lanes
from .pack import pack as pack_kernel
from .popc import popc

STEP = 8
"""Words a row of activations is padded to a multiple of: one 256-bit step of a tensor core."""

_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Bits(NamedTuple):
    """Rows of signs: words int32 (rows, 8 * steps), zero above ``features``; the number of ones int32 (rows)."""

    words: Tensor
    ones: Tensor
    features: int


class Weight(NamedTuple):
    """A +-1 weight (rows, columns) in the lanes form that packed layers hold."""

    lanes: Tensor
    rows: int
    columns: int


class Words(NamedTuple):
    """One of q, k, v as packed heads: a tensor of int32 words, where head 0 of the first row starts in it, and the
    strides in words of batch, head and row."""

    tensor: Tensor
    strides: tuple[int, int, int]
    first: int = 0

    def pointer(self) -> Tensor:
        return self.tensor.view(-1)[self.first :]


def steps_for(features: int) -> int:
    """256-bit steps of a row."""
    return ceil_div(features, 32 * STEP)


def pack(x: Tensor, threshold: Tensor, strict: bool, words: int | None = None) -> Bits:
    """x (rows, K) float, dense along K -> its bits (contract 3); ``words``: length of a row if not padded to steps."""
    rows, k = x.shape
    if x.device.type == "cpu":  # the interpreter drops the kernel's assertion
        naive.reject_nan(x, "x")
        naive.reject_nan(threshold[: rows * k], "x")  # nothing meets it where there is no x
    words = STEP * steps_for(k) if words is None else words
    out = Bits(_empty(x, (rows, words)), _empty(x, (rows,)), k)
    height, width = 64 if x.device.type == "cpu" else 4, power_of_two(min(words, 32))
    pack_kernel[(ceil_div(rows, height),)](
        x, threshold, out.words, out.ones, rows, k, x.stride(0), words,
        int(threshold.numel() > 1), strict, height, width, **PLAIN,
    )  # fmt: skip
    return out


def linear(
    a: Bits,
    weight: Weight,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    unit: bool = False,
    relu: bool = False,
    dtype: torch.dtype = torch.float32,
    kernel: str | None = None,
) -> Tensor:
    """``fl(fl(acc * scale) + bias)``, and ReLU of it: (rows, weight.rows) in ``dtype``.

    Args:
        unit: ``a`` is of {0, 1}, else of {-1, +1}.
        scale: fp32 [N] or [1]. bias: fp32 [N] or None.
        kernel: one of ``device.KERNELS`` by name; ValueError or RuntimeError where it cannot be had.
    """
    out = torch.empty((a.words.shape[0], weight.rows), dtype=dtype, device=a.words.device)
    _product(a, weight, scale, bias, None, out, None, weight.rows, unit, relu, kernel)
    return out


def linear_bits(a: Bits, weight: Weight, limits: Tensor, *, unit: bool = False, kernel: str | None = None) -> Bits:
    """The bits ``acc >= limits`` of the product, with ``limits`` of :func:`.limits.integer_limits`: what the next layer
    reads, with no float in between."""
    rows, words = a.words.shape[0], STEP * steps_for(weight.rows)
    dense = weight.rows == 32 * words
    out = Bits(_empty(a.words, (rows, words), zero=not dense), _empty(a.words, (rows,), zero=True), weight.rows)
    _product(a, weight, None, None, limits, out.words, out.ones, words, unit, False, kernel)
    return out


def _product(a, weight, scale, bias, limits, out, out_ones, out_stride, unit, relu, kernel) -> None:
    on, rows = device(out.device), out.shape[0]
    if rows == 0:
        return
    name = choose(on, rows)[0] if kernel is None else require(kernel, on)
    launch = settings(name, on, rows, weight.rows)
    height, width = block(launch)
    lanes = weight.lanes.contiguous()
    ones = ones_of(weight.lanes) if name != "popc" and not unit else None
    left, right = (a.words, lanes) if name != "int8" else (a.words.view(torch.int8), lanes.view(torch.int8))
    options = {"ASSEMBLY": on.kind == "cuda"} if name == "int8" else {}
    {"popc": popc, "b1": b1, "int8": int8}[name][ceil_div(rows, height), ceil_div(weight.rows, width)](
        left, a.ones, right, ones, scale, bias, limits, out, out_ones,
        rows, weight.rows, weight.columns, a.words.shape[1] // STEP, lanes.shape[1], out_stride,
        UNIT=unit, SCALE_STEP=int(scale is not None and scale.numel() > 1), RELU=relu, **options, **launch, **PLAIN,
    )  # fmt: skip


_ones = WeakTensorKeyDictionary()


def ones_of(lanes: Tensor) -> Tensor:
    """int32 [16 * groups]: ones of each row of a weight, counted once in its life. A change in place counts anew; a
    count made while a CUDA graph is captured belongs to that graph's memory and is not kept."""
    version = None if lanes.is_inference() else lanes._version
    if (known := _ones.get(lanes)) is not None and known[0] == version:
        return known[1]
    groups, words, _ = lanes.shape
    ones = _empty(lanes, (16 * groups,))
    count_lanes[(groups,)](lanes.contiguous(), ones, words, 64, **PLAIN)
    if lanes.device.type == "cpu" or not torch.cuda.is_current_stream_capturing():
        _ones[lanes] = version, ones
    return ones


def attention(
    q: Words,
    k: Words,
    v: Words,
    shape: tuple[int, int, int, int, int, int],
    keep: Tensor | None,
    rule: tuple[Tensor, ...],
    scale: Tensor,
    dtype: torch.dtype,
    limits: Tensor | None = None,
) -> Tensor | Bits:
    """Binary attention (contract 4).

    Args:
        shape: B, H, Tq, Tk, d, dv. keep: bool, broadcastable to (B, H, Tq, Tk), or None.
        rule: (margin,) or (table, ratio), int64, as in ``ops.binary_attention_rowmax`` and ``_table``.
        scale: fp32, one element. dtype: of the output.
        limits: fp32 [H * dv], for the bits ``out >= limits``; dv a multiple of 32.

    Returns:
        (B, H, Tq, dv); with ``limits`` the bits of B * Tq rows of H * dv features.
    """
    batch, heads, queries, keys, d, dv = shape
    on = device(scale.device)
    if limits is None:
        out, ones, stride = torch.empty((batch, heads, queries, dv), dtype=dtype, device=scale.device), None, 0
    else:
        stride = STEP * steps_for(heads * dv)
        dense = 32 * stride == heads * dv
        out = _empty(scale, (batch * queries, stride), zero=not dense)
        ones = _empty(scale, (batch * queries,), zero=True)
    result = out if limits is None else Bits(out, ones, heads * dv)
    if out.numel() == 0:
        return result
    launch = settings("attention", on, queries, 64 * batch * heads)  # one head is one column of blocks
    mask_strides = (0, 0, 0, 0)
    if keep is not None:
        keep = keep.expand(batch, heads, queries, keys)
        mask_strides = keep.stride()
        keep = keep.view(torch.int8)
    margin, table, ratio = (rule[0], None, None) if len(rule) == 1 else (None, *rule)
    attention_kernel[batch * heads, ceil_div(queries, launch["BM"])](
        q.pointer(), k.pointer(), v.pointer(), keep, margin, table, ratio, scale, limits, out, ones,
        heads, queries, keys, *q.strides, *k.strides, *v.strides, *mask_strides, stride,
        D=d, DV=dv, DP=power_of_two(d, 32), DVP=power_of_two(dv, 32), ROUNDED=_TYPES.get(dtype, tl.float32),
        **launch, **PLAIN,
    )  # fmt: skip
    return result


def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, threshold: Tensor
) -> tuple[Tensor, Bits]:
    """``y = layer_norm(x + residual)`` and the bits ``y >= threshold`` that the next binary layer reads.

    Args:
        x, residual: (rows, K) float, contiguous; residual may be None. weight, bias: [K]. threshold: fp32 [K] or [1].

    Returns:
        y (rows, K) in the dtype of ``x``, computed in fp32, and its bits.
    """
    rows, columns = x.shape
    words = STEP * steps_for(columns)
    y, out = torch.empty_like(x), Bits(_empty(x, (rows, words)), _empty(x, (rows,)), columns)
    if rows:
        layer_norm_kernel[(rows,)](
            x, residual, weight, bias, threshold, y, out.words, out.ones, columns, words, eps,
            int(threshold.numel() > 1), power_of_two(words), **PLAIN,
        )  # fmt: skip
    return y, out


def _empty(like: Tensor, shape: tuple[int, ...], zero: bool = False) -> Tensor:
    make = torch.zeros if zero else torch.empty
    return make(shape, dtype=torch.int32, device=like.device)
