"""What kernels share about words of 32 bits and about integer products: small functions, inlined where used."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Kernels run in Python, on CPU tensors; decided by TRITON_INTERPRET when this module is imported."""


@triton.jit
def popcount(word):
    """Ones of int32 words. LLVM knows this idiom: one POPC on NVIDIA, one v_bcnt on AMD. Multiplying the result by a
    constant hides it, so sums are kept as they are and scaled last."""
    x = word.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def pack_columns(bits, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS) of 0 and 1 -> int32 words (ROWS, COLUMNS / 32)."""
    spread = bits.to(tl.int32).reshape(ROWS, COLUMNS // 32, 32)
    return tl.sum(spread << tl.arange(0, 32)[None, None, :], 2)


@triton.jit
def at_lane(n, words):
    """Offset of word 0 of row ``n`` in the lanes form of a weight with ``words`` words a row; words are 16 apart."""
    return (n >> 4) * words * 16 + (n & 15)


@triton.jit
def product(common, a_ones, b_ones, k, UNIT: tl.constexpr):
    """Integer product of bit rows from the ones they have in common: {0,1} by +-1, or +-1 by +-1 (contract 2)."""
    if UNIT:
        return 2 * common - a_ones
    else:
        return 4 * common - 2 * (a_ones + b_ones) + k


@triton.jit
def scaled(acc, scale, bias, RELU: tl.constexpr):
    """``fl(fl(acc * scale) + bias)``; ``bias`` may be None."""
    value = acc.to(tl.float32) * scale
    if bias is not None:
        value = value + bias
    if RELU:
        value = tl.maximum(value, 0.0)
    return value


@triton.jit
def cast(value, TYPE: tl.constexpr):
    """fp32 to a float type, to nearest even; the interpreter, left alone, cuts off the end of a bf16."""
    if INTERPRETED and tl.bfloat16 == TYPE:
        whole = value.to(tl.uint32, bitcast=True)
        value = ((whole + 0x7FFF + ((whole >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(TYPE)


@triton.jit
def store_tile(
    acc, m, n, scale_ptr, bias_ptr, limit_ptr, out_ptr, out_ones_ptr, rows, columns, out_stride,
    SCALE_STEP: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Finish a tile of integer products, BM rows ``m`` by BN columns ``n``.

    With ``limit_ptr`` (int32 a column) bit = ``acc >= limit``, stored as words, the ones of each row added to
    ``out_ones``; else floats.
    """
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    if limit_ptr is not None:
        limit = tl.load(limit_ptr + n, mask=n < columns, other=0)
        words = pack_columns((acc >= limit[None, :]) & inside, BM, BN)
        w = tl.min(n, 0) // 32 + tl.arange(0, BN // 32)
        to = out_ptr + m.to(tl.int64)[:, None] * out_stride + w[None, :]
        tl.store(to, words, mask=(m < rows)[:, None] & (w < out_stride)[None, :])
        tl.atomic_add(out_ones_ptr + m, tl.sum(popcount(words), 1), mask=m < rows)
    else:
        scale = tl.load(scale_ptr + n * SCALE_STEP, mask=n < columns, other=0)[None, :]
        bias = None
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + n, mask=n < columns, other=0)[None, :]
        value = scaled(acc, scale, bias, RELU)
        to = out_ptr + m.to(tl.int64)[:, None] * out_stride + n[None, :]
        tl.store(to, cast(value, out_ptr.dtype.element_ty), mask=inside)
