"""Bit product on int8 tensor cores, one bit plane of every byte at a time: Blackwell, AMD, and whatever else has them.

Plane j of the left byte meets plane j of the right one moved to bit 6 - j, so that a match counts exactly 64 and one
operation serves every element; plane 7 goes to bits 0 and 6.
"""

import triton
import triton.language as tl

from .bits import INTERPRETED, product, store_tile


@triton.jit
def _left(x, ASSEMBLY: tl.constexpr):
    """The eight planes of int8 x. With ASSEMBLY (NVIDIA) one instruction serves four bytes."""
    if ASSEMBLY and not INTERPRETED:
        planes = tl.inline_asm_elementwise(
            "and.b32 $0,$8,0x01010101; and.b32 $1,$8,0x02020202; and.b32 $2,$8,0x04040404; and.b32 $3,$8,0x08080808;"
            "and.b32 $4,$8,0x10101010; and.b32 $5,$8,0x20202020; and.b32 $6,$8,0x40404040;"
            "shr.u32 $7,$8,7; and.b32 $7,$7,0x01010101;",
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r",
            [x],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    else:
        planes = (x & 1, x & 2, x & 4, x & 8, x & 16, x & 32, x & 64, (x >> 7) & 1)
    return planes


@triton.jit
def _right(x, ASSEMBLY: tl.constexpr):
    """The eight planes of int8 x, each at the bit that makes its products 64."""
    if ASSEMBLY and not INTERPRETED:
        planes = tl.inline_asm_elementwise(
            "and.b32 $0,$8,0x01010101; shl.b32 $0,$0,6; and.b32 $1,$8,0x02020202; shl.b32 $1,$1,4;"
            "and.b32 $2,$8,0x04040404; shl.b32 $2,$2,2; and.b32 $3,$8,0x08080808;"
            "and.b32 $4,$8,0x10101010; shr.u32 $4,$4,2; and.b32 $5,$8,0x20202020; shr.u32 $5,$5,4;"
            "and.b32 $6,$8,0x40404040; shr.u32 $6,$6,6; shr.u32 $7,$8,1; and.b32 $7,$7,0x40404040;",
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r",
            [x],
            dtype=(tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8),
            is_pure=True,
            pack=4,
        )
    else:
        planes = (
            (x & 1) << 6, (x & 2) << 4, (x & 4) << 2, x & 8, (x & 16) >> 2, (x & 32) >> 4, (x & 64) >> 6, (x >> 1) & 64
        )  # fmt: skip
    return planes


@triton.jit
def int8(
    a_ptr, a_ones_ptr, b_ptr, b_ones_ptr, scale_ptr, bias_ptr, limit_ptr, out_ptr, out_ones_ptr,
    rows, columns, k, a_steps, b_words, out_stride,
    UNIT: tl.constexpr, SCALE_STEP: tl.constexpr, RELU: tl.constexpr, ASSEMBLY: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """a (rows, 32 a_steps) bytes by b, a weight in lanes form -> ``store_tile``. Both pointers are int8."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    byte = tl.arange(0, 32)
    a = a_ptr + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * (32 * a_steps) + byte[None, :]
    b = b_ptr + at_byte(tl.minimum(n, columns - 1), b_words)[None, :] + (byte & 3)[:, None]
    acc = tl.zeros((BM, BN), tl.int32)
    for step in range(a_steps):
        left = _left(tl.load(a + 32 * step), ASSEMBLY)
        # beyond the last word the left side is zero
        word = tl.minimum(8 * step + (byte >> 2), b_words - 1)
        right = _right(tl.load(b + (word * 64)[:, None]), ASSEMBLY)
        for j in tl.static_range(8):
            acc = tl.dot(left[j], right[j], acc, out_dtype=tl.int32)
    a_ones = tl.load(a_ones_ptr + m, mask=m < rows, other=0)[:, None]
    b_ones = None
    if not UNIT:
        b_ones = tl.load(b_ones_ptr + n, mask=n < columns, other=0)[None, :]
    acc = product(acc >> 6, a_ones, b_ones, k, UNIT)
    store_tile(
        acc, m, n, scale_ptr, bias_ptr, limit_ptr, out_ptr, out_ones_ptr, rows, columns, out_stride,
        SCALE_STEP, RELU, BM, BN,
    )  # fmt: skip


@triton.jit
def at_byte(n, words):
    """Offset of byte 0 of word 0 of row ``n`` in the lanes form."""
    return ((n >> 4) * words * 16 + (n & 15)) * 4
