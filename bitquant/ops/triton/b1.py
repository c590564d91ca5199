"""Bit product on the 1-bit tensor cores of sm_80 to sm_90, from plain Triton.

Tensors have one element per thread (32 a warp), so an inline-assembly instruction on them is one instruction of the
warp, and no layout is ever converted. Only the AND form is one native instruction on all of these chips. The order
of words along K is free as long as both operands agree: lane (g, t) of a warp reads words 2 t and 2 t + 1 of every
eight, one 8-byte load of plain rows on the left and whole sectors of the lanes form on the right.
"""

import triton
import triton.language as tl

from .bits import INTERPRETED, cast, popcount, product, scaled


@triton.jit
def _dots(a, b, W: tl.constexpr):
    """Emulation: lane (g, t) holds word t of row g of a and of b -> (W, 8, 8) ones in common."""
    return tl.sum(popcount(a.reshape(W, 8, 1, 4) & b.reshape(W, 1, 8, 4)), 3)


@triton.jit
def bmma(c, a, b, W: tl.constexpr):
    """c + popc(a & b) of each warp: 16 rows by 8 columns by 256 bits, as fragments of mma.m16n8k256."""
    if INTERPRETED:
        low = (_dots(a[0], b[0], W) + _dots(a[2], b[1], W)).reshape(W, 8, 4, 2)
        high = (_dots(a[1], b[0], W) + _dots(a[3], b[1], W)).reshape(W, 8, 4, 2)
        c0, c1 = tl.split(low)
        c2, c3 = tl.split(high)
        r = (
            c[0] + c0.reshape(32 * W),
            c[1] + c1.reshape(32 * W),
            c[2] + c2.reshape(32 * W),
            c[3] + c3.reshape(32 * W),
        )
    else:
        r = tl.inline_asm_elementwise(
            "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc"
            " {$0,$1,$2,$3},{$8,$9,$10,$11},{$12,$13},{$4,$5,$6,$7};",
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
            [c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b[0], b[1]],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    return r


@triton.jit
def _pair(ptr):
    """Two neighbouring words of each lane, in one load."""
    return tl.split(tl.load(ptr[:, None] + tl.arange(0, 2)[None, :]))


@triton.jit
def _columns(ptr, n, STEP: tl.constexpr, columns):
    """Values of columns n and n + 1."""
    return tl.load(ptr + n * STEP, mask=n < columns, other=0), tl.load(
        ptr + (n + 1) * STEP, mask=n + 1 < columns, other=0
    )


@triton.jit
def b1(
    a_ptr, a_ones_ptr, b_ptr, b_ones_ptr, scale_ptr, bias_ptr, limit_ptr, out_ptr, out_ones_ptr,
    rows, columns, k, a_steps, b_words, out_stride,
    UNIT: tl.constexpr, SCALE_STEP: tl.constexpr, RELU: tl.constexpr,
    MT: tl.constexpr, NT: tl.constexpr, WM: tl.constexpr, WN: tl.constexpr,
):  # fmt: skip
    """a (rows, 8 a_steps) words by b, a weight in lanes form: every warp of WM by WN computes 16 MT rows by 8 NT
    columns. Floats out, or with ``limit_ptr`` bits and their number (NT a multiple of 4)."""
    W: tl.constexpr = WM * WN
    thread = tl.arange(0, 32 * W)
    g, t, warp = (thread & 31) >> 2, thread & 3, thread >> 5
    m0 = (tl.program_id(0) * WM + warp // WN) * (MT * 16) + g
    n0 = (tl.program_id(1) * WN + warp % WN) * (NT * 8)
    groups = (columns + 15) // 16
    zero = tl.zeros((32 * W,), tl.int32)
    acc = ()
    for _ in tl.static_range(MT * NT):
        acc = acc + ((zero, zero, zero, zero),)
    for step in range(a_steps):
        w = 8 * step + 2 * t
        a = ()
        for i in tl.static_range(MT):
            top = tl.minimum(m0 + i * 16, rows - 1).to(tl.int64) * (8 * a_steps)
            bottom = tl.minimum(m0 + i * 16 + 8, rows - 1).to(tl.int64) * (8 * a_steps)
            a0, a2 = _pair(a_ptr + top + w)
            a1, a3 = _pair(a_ptr + bottom + w)
            a = a + ((a0, a1, a2, a3),)
        b = ()
        # beyond the last word the left side is zero
        w0, w1 = tl.minimum(w, b_words - 1) * 16, tl.minimum(w + 1, b_words - 1) * 16
        for j in tl.static_range(NT):
            group = tl.minimum((n0 + j * 8) >> 4, groups - 1)
            at = b_ptr + group * (b_words * 16) + ((n0 + j * 8) & 15) + g
            b = b + ((tl.load(at + w0), tl.load(at + w1)),)
        new = ()
        for i in tl.static_range(MT):
            for j in tl.static_range(NT):
                new = new + (bmma(acc[i * NT + j], a[i], b[j], W),)
        acc = new
    a_ones = ()
    words = ()
    for r in tl.static_range(2 * MT):
        m = m0 + r * 8
        a_ones = a_ones + (tl.load(a_ones_ptr + m, mask=m < rows, other=0),)
        words = words + (zero,)
    counts = words
    for j in tl.static_range(NT):
        n = n0 + j * 8 + 2 * t  # and n + 1
        b0, b1 = None, None
        if not UNIT:
            b0, b1 = _columns(b_ones_ptr, n, 1, columns)
        if limit_ptr is not None:
            limit0, limit1 = _columns(limit_ptr, n, 1, columns)
        else:
            scale0, scale1 = _columns(scale_ptr, n, SCALE_STEP, columns)
            bias0, bias1 = None, None
            if bias_ptr is not None:
                bias0, bias1 = _columns(bias_ptr, n, 1, columns)
        changed = ()
        for r in tl.static_range(2 * MT):
            c = acc[r // 2 * NT + j]
            low = product(c[r % 2 * 2], a_ones[r], b0, k, UNIT)
            high = product(c[r % 2 * 2 + 1], a_ones[r], b1, k, UNIT)
            if limit_ptr is not None:
                bits = ((low >= limit0) & (n < columns)).to(tl.int32)
                bits |= ((high >= limit1) & (n + 1 < columns)).to(tl.int32) << 1
                changed = changed + (words[r] | (bits << ((j % 4) * 8 + 2 * t)),)
            else:
                m = m0 + r * 8
                value = tl.join(scaled(low, scale0, bias0, RELU), scaled(high, scale1, bias1, RELU))
                column = n[:, None] + tl.arange(0, 2)[None, :]
                to = out_ptr + m.to(tl.int64)[:, None] * out_stride + column
                tl.store(to, cast(value, out_ptr.dtype.element_ty), mask=(m < rows)[:, None] & (column < columns))
        if limit_ptr is not None:
            words = changed
            if j % 4 == 3:  # the four lanes of a row hold eight bits each of one word
                at = (n0 + j * 8) // 32
                added = ()
                empty = ()
                for r in tl.static_range(2 * MT):
                    m = m0 + r * 8
                    whole = tl.sum(words[r].reshape(8 * W, 4), 1)
                    whole = tl.broadcast_to(whole[:, None], (8 * W, 4)).reshape(32 * W)
                    to = out_ptr + m.to(tl.int64) * out_stride + at
                    tl.store(to, whole, mask=(m < rows) & (at < out_stride) & (t == 0))
                    added = added + (counts[r] + popcount(whole),)
                    empty = empty + (zero,)
                counts = added
                words = empty
    if limit_ptr is not None:
        for r in tl.static_range(2 * MT):
            m = m0 + r * 8
            tl.atomic_add(out_ones_ptr + m, counts[r], mask=(m < rows) & (t == 0))
