"""Bit product by XNOR and population count: any GPU, and few rows, where no tensor core fits."""

import triton
import triton.language as tl

from .bits import at_lane, popcount, store_tile


@triton.jit
def popc(
    a_ptr, a_ones_ptr, b_ptr, b_ones_ptr, scale_ptr, bias_ptr, limit_ptr, out_ptr, out_ones_ptr,
    rows, columns, k, a_steps, b_words, out_stride,
    UNIT: tl.constexpr, SCALE_STEP: tl.constexpr, RELU: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """a (rows, 8 a_steps) words by b, a weight in lanes form -> ``store_tile``. ``b_ones`` is not read."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    a = a_ptr + tl.minimum(m, rows - 1).to(tl.int64) * (8 * a_steps)
    b = b_ptr + at_lane(tl.minimum(n, columns - 1), b_words)
    acc = tl.zeros((BM, BN), tl.int32)
    for w in range(b_words):
        x = tl.load(a + w)[:, None]
        y = tl.load(b + w * 16)[None, :]
        if UNIT:
            acc += popcount(x & y)
        else:
            acc += popcount(x ^ y)
    a_ones = tl.load(a_ones_ptr + m, mask=m < rows, other=0)[:, None]
    acc = 2 * acc - a_ones if UNIT else k - 2 * acc
    store_tile(
        acc, m, n, scale_ptr, bias_ptr, limit_ptr, out_ptr, out_ones_ptr, rows, columns, out_stride,
        SCALE_STEP, RELU, BM, BN,
    )  # fmt: skip
