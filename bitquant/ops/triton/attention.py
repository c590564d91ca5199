"""Binary attention on bits, in passes over the keys: the row's best score, for the table rule its sum, then the values.

Scores, table sums and the comparison are integers, so the result does not depend on the order (contract 4). The
probabilities never leave the registers. Keys that no query of a block keeps are skipped.
"""

import triton
import triton.language as tl

from .bits import cast, pack_columns, popcount

NEVER = tl.constexpr(-(1 << 30))


@triton.jit
def _signs(ptr, row, row_stride, rows, COLUMNS: tl.constexpr, PADDED: tl.constexpr):
    """int8 (len(row), PADDED): +-1 of packed rows, 0 beyond COLUMNS."""
    w = tl.arange(0, PADDED // 32)
    last: tl.constexpr = (COLUMNS + 31) // 32 - 1
    at = ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * row_stride + tl.minimum(w, last)[None, :]
    bits = (tl.load(at)[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    column = w[:, None] * 32 + tl.arange(0, 32)[None, :]
    signs = tl.where((column < COLUMNS)[None, :, :], bits * 2 - 1, 0)
    return signs.to(tl.int8).reshape(row.shape[0], PADDED)


@triton.jit
def _kept(keep, m, n, keep_row, keep_key, queries, keys):
    """bool (len(m), len(n)): keys that exist and that the mask, if there is one, keeps."""
    kept = (m < queries)[:, None] & (n < keys)[None, :]
    if keep is not None:
        at = keep + m.to(tl.int64)[:, None] * keep_row + n.to(tl.int64)[None, :] * keep_key
        kept = kept & (tl.load(at, mask=kept, other=0) != 0)
    return kept


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, keep_ptr, margin_ptr, table_ptr, ratio_ptr, scale_ptr, limit_ptr, out_ptr, out_ones_ptr,
    heads, queries, keys,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    keep_batch, keep_head, keep_row, keep_key, out_stride,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, ROUNDED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q, k, v as words, strides in words; keep int8, any strides, or None.

    ``margin_ptr`` int64 for the row-max rule; else ``table_ptr`` int64 [D + 1], not rising, and ``ratio_ptr`` int64.
    Floats (batch, heads, queries, DV) out; or with ``limit_ptr`` fp32 [heads * DV] the bits ``out >= limit`` of the
    value rounded to ROUNDED, as rows of ``out_stride`` words a query, and their number added to ``out_ones``.
    """
    batch, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    q = _signs(q_ptr + batch * q_batch + head * q_head, m, q_row, queries, D, DP)
    k = k_ptr + batch * k_batch + head * k_head
    v = v_ptr + batch * v_batch + head * v_head
    keep = None
    if keep_ptr is not None:
        keep = keep_ptr + batch * keep_batch + head * keep_head

    best = tl.full((BM,), NEVER, tl.int32)
    for first in range(0, keys, BN):
        n = first + tl.arange(0, BN)
        kept = _kept(keep, m, n, keep_row, keep_key, queries, keys)
        if tl.max(tl.max(kept.to(tl.int32), 1), 0) > 0:
            scores = tl.dot(q, tl.trans(_signs(k, n, k_row, keys, D, DP)), out_dtype=tl.int32)
            best = tl.maximum(best, tl.max(tl.where(kept, scores, NEVER), 1))

    if margin_ptr is not None:
        margin = tl.minimum(tl.maximum(tl.load(margin_ptr), -1), 2 * D).to(tl.int32)
        threshold = best - margin
    else:
        total = tl.zeros((BM,), tl.int64)
        for first in range(0, keys, BN):
            n = first + tl.arange(0, BN)
            kept = _kept(keep, m, n, keep_row, keep_key, queries, keys)
            if tl.max(tl.max(kept.to(tl.int32), 1), 0) > 0:
                scores = tl.dot(q, tl.trans(_signs(k, n, k_row, keys, D, DP)), out_dtype=tl.int32)
                below = tl.where(kept, (best[:, None] - scores) >> 1, 0)
                weight = tl.load(table_ptr + below, mask=kept, other=0).to(tl.int32)
                total += tl.sum(weight, 1)
        # from 1.0 on nothing is taken, as no weight exceeds the sum; the clamp keeps the product inside int64
        least = tl.minimum(tl.load(ratio_ptr), 1 << 24) * total
        levels = tl.zeros((BM,), tl.int32)
        for i in range(D + 1):
            levels += ((tl.load(table_ptr + i) << 24) > least).to(tl.int32)
        threshold = best - 2 * (levels - 1)

    acc = tl.zeros((BM, DVP), tl.int32)
    count = tl.zeros((BM,), tl.int32)
    for first in range(0, keys, BN):
        n = first + tl.arange(0, BN)
        kept = _kept(keep, m, n, keep_row, keep_key, queries, keys)
        if tl.max(tl.max(kept.to(tl.int32), 1), 0) > 0:
            scores = tl.dot(q, tl.trans(_signs(k, n, k_row, keys, D, DP)), out_dtype=tl.int32)
            taken = (kept & (scores >= threshold[:, None])).to(tl.int8)
            acc = tl.dot(taken, _signs(v, n, v_row, keys, DV, DVP), acc, out_dtype=tl.int32)
            count += tl.sum(taken.to(tl.int32), 1)

    value = acc.to(tl.float32)
    if margin_ptr is not None:
        value = tl.div_rn(value, tl.maximum(count, 1).to(tl.float32)[:, None])
    value = value * tl.load(scale_ptr)
    c = tl.arange(0, DVP)
    if limit_ptr is not None:
        limit = tl.load(limit_ptr + head * DV + c, mask=c < DV, other=0)[None, :]
        words = pack_columns((cast(value, ROUNDED).to(tl.float32) >= limit) & (c < DV)[None, :], BM, DVP)
        w = tl.arange(0, DVP // 32)
        row = batch * queries + m
        to = out_ptr + row[:, None] * out_stride + (head * (DV // 32) + w)[None, :]
        tl.store(to, words, mask=(m < queries)[:, None] & (w < DV // 32)[None, :])
        tl.atomic_add(out_ones_ptr + row, tl.sum(popcount(words), 1), mask=m < queries)
    else:
        row = (batch * heads + head) * queries + m
        to = out_ptr + row[:, None] * DV + c[None, :]
        tl.store(to, cast(value, out_ptr.dtype.element_ty), mask=(m < queries)[:, None] & (c < DV)[None, :])
