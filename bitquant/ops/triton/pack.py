"""Kernels that make bits: signs of float rows, and the ones of each row of a weight."""

import triton
import triton.language as tl

from .bits import popcount


@triton.jit(debug=True)  # keeps the assertion in the compiled kernel
def pack(
    x_ptr, threshold_ptr, words_ptr, ones_ptr, rows, k, x_stride, words_stride,
    THRESHOLD_STEP: tl.constexpr, STRICT: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """x (rows, k) float -> words (rows, words_stride), zero above bit k, and the ones of each row (contract 3)."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = r.to(tl.int64)
    shift = tl.arange(0, 32)
    count = tl.zeros((ROWS,), tl.int32)
    for first in range(0, words_stride, WORDS):
        w = first + tl.arange(0, WORDS)
        c = w[:, None] * 32 + shift[None, :]
        inside = (r < rows)[:, None, None] & (c < k)[None, :, :]
        x = tl.load(x_ptr + row[:, None, None] * x_stride + c[None, :, :], mask=inside, other=0).to(tl.float32)
        threshold = tl.load(threshold_ptr + c * THRESHOLD_STEP, mask=c < k, other=0)[None, :, :]
        tl.device_assert((x == x) & (threshold == threshold), "NaN reached a binarizer")
        bit = (x > threshold) if STRICT else (x >= threshold)
        words = tl.sum((bit & inside).to(tl.int32) << shift[None, None, :], 2)
        to = words_ptr + row[:, None] * words_stride + w[None, :]
        tl.store(to, words, mask=(r < rows)[:, None] & (w < words_stride)[None, :])
        count += tl.sum(popcount(words), 1)
    tl.store(ones_ptr + r, count, mask=r < rows)


@triton.jit
def count_lanes(lanes_ptr, ones_ptr, words, WORDS: tl.constexpr):
    """Ones of the 16 rows of each group of a weight in lanes form (groups, words, 16)."""
    group, lane = tl.program_id(0), tl.arange(0, 16)
    count = tl.zeros((16,), tl.int32)
    for first in range(0, words, WORDS):
        w = first + tl.arange(0, WORDS)
        at = (group * words + w)[:, None] * 16 + lane[None, :]
        count += tl.sum(popcount(tl.load(lanes_ptr + at, mask=(w < words)[:, None], other=0)), 0)
    tl.store(ones_ptr + group * 16 + lane, count)
