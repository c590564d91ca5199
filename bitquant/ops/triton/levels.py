"""Inputs of 1 to 8 bits, as int8 levels: linear layers and convolutions of any width in one product kernel.

A linear layer is a convolution of one tap over its rows. Zero is a level here, so borders and empty places count 0 by
themselves (contract 5).
"""

import triton
import triton.language as tl

from .bits import at_lane, cast, scaled

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: added and taken away, it rounds a small fp32 to the nearest integer, half to even."""


@triton.jit
def level(x, offset, step, inside, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """fp32 levels of fp32 x (contract 3); ``offset`` is the threshold at 1 bit, the shift at more. NaN stops the device
    where ``inside``, also the NaN of inf - inf or 0 / 0."""
    if BITS == 1:
        nan = (x != x) | (offset != offset)
        r = tl.where(x >= offset, 1.0, -1.0) if SIGNED else tl.where(x > offset, 1.0, 0.0)
    else:
        LOW: tl.constexpr = -(2 ** (BITS - 1)) if SIGNED else 0
        HIGH: tl.constexpr = 2 ** (BITS - 1) - 1 if SIGNED else 2**BITS - 1
        quotient = tl.div_rn(x + offset, step)
        nan = quotient != quotient
        r = tl.minimum(tl.maximum(quotient, LOW), HIGH)
        r = (r + ROUND) - ROUND
    tl.device_assert(~(nan & inside), "NaN reached a binarizer")
    return r


@triton.jit(debug=True)  # keeps the assertion in the compiled kernel
def quantize(
    x_ptr, offset_ptr, step_ptr, out_ptr, positions, channels, x_batch, x_channel, x_position,
    OFFSET_STEP: tl.constexpr, BITS: tl.constexpr, SIGNED: tl.constexpr, PLACES: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """x (batch, channels, positions) float, any strides -> levels int8 (batch, positions, channels), of unsigned
    8-bit levels the low byte. PLACES: a position whose channels are all zero has level 0."""
    blocks = tl.cdiv(positions, BP)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BP + tl.arange(0, BP)
    x = x_ptr + batch * x_batch + p.to(tl.int64)[:, None] * x_position
    step = 1.0
    if step_ptr is not None:
        step = tl.load(step_ptr)
    valid = tl.zeros((BP,), tl.int32)
    if PLACES:
        for first in range(0, channels, BC):
            c = first + tl.arange(0, BC)
            inside = (p < positions)[:, None] & (c < channels)[None, :]
            values = tl.load(x + c.to(tl.int64)[None, :] * x_channel, mask=inside, other=0).to(tl.float32)
            valid = tl.maximum(valid, tl.max((values != 0).to(tl.int32), 1))
    else:
        valid += 1
    for first in range(0, channels, BC):
        c = first + tl.arange(0, BC)
        inside = (p < positions)[:, None] & (c < channels)[None, :]
        values = tl.load(x + c.to(tl.int64)[None, :] * x_channel, mask=inside, other=0).to(tl.float32)
        offset = tl.load(offset_ptr + c * OFFSET_STEP, mask=c < channels, other=0)[None, :]
        out = level(values, offset, step, inside, BITS, SIGNED).to(tl.int32) * valid[:, None]
        to = out_ptr + (batch * positions + p)[:, None] * channels + c[None, :]
        tl.store(to, out.to(tl.int8), mask=inside)


@triton.jit
def _signs(ptr, word, words, WORDS: tl.constexpr, BN: tl.constexpr):
    """Words ``word``, WORDS of them, of BN rows in lanes form -> int8 (32 WORDS, BN) of +-1."""
    w = tl.minimum(word + tl.arange(0, WORDS), words - 1)
    packed = tl.load(ptr[None, :] + (w * 16)[:, None])
    bits = (packed[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
    return (bits * 2 - 1).to(tl.int8).reshape(32 * WORDS, BN)


@triton.jit
def level_product(
    a_ptr, b_ptr, scale_ptr, bias_ptr, out_ptr,
    positions, group_columns, channels, group_channels, columns, b_words,
    height, width, out_height, out_width, kernel_width,
    stride_y, stride_x, dilation_y, dilation_x, before_y, before_x,
    out_batch, out_column, out_position,
    SCALE_STEP: tl.constexpr, UNSIGNED_BYTE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Levels int8 (batch, height, width, channels) by a +-1 weight in lanes form, its ``columns`` bits a row ordered
    ``tap * group_channels + channel``. ``positions`` = batch * out_height * out_width; out: any strides."""
    tiles = tl.cdiv(group_columns, BN)
    group = tl.program_id(1) // tiles
    local = tl.program_id(1) % tiles * BN + tl.arange(0, BN)
    n = group * group_columns + local
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    place = m % (out_height * out_width)
    batch = (m // (out_height * out_width)).to(tl.int64)
    y0 = place // out_width * stride_y - before_y
    x0 = place % out_width * stride_x - before_x
    image = a_ptr + batch * (height * width) * channels
    b = b_ptr + at_lane(tl.minimum(n, tl.num_programs(1) // tiles * group_columns - 1), b_words)
    acc = tl.zeros((BM, BN), tl.int32)
    high = tl.zeros((BM, BN), tl.int32)
    for first in range(0, columns, BK):
        kk = first + tl.arange(0, BK)
        tap = kk // group_channels
        y = y0[:, None] + (tap // kernel_width * dilation_y)[None, :]
        x = x0[:, None] + (tap % kernel_width * dilation_x)[None, :]
        inside = (m < positions)[:, None] & (kk < columns)[None, :]
        inside = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = (y * width + x) * channels + (group * group_channels + kk % group_channels)[None, :]
        a = tl.load(image[:, None] + at, mask=inside, other=0)
        weight = _signs(b, first // 32, b_words, BK // 32, BN)
        if UNSIGNED_BYTE:  # 0 to 255 does not fit int8: two products, of the upper seven bits and of the lowest
            high = tl.dot((a >> 1) & 127, weight, high, out_dtype=tl.int32)
            acc = tl.dot(a & 1, weight, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(a, weight, acc, out_dtype=tl.int32)
    acc += 2 * high
    column = local < group_columns
    scale = tl.load(scale_ptr + n * SCALE_STEP, mask=column, other=0)[None, :]
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n, mask=column, other=0)[None, :]
    value = scaled(acc, scale, bias, False)
    to = out_ptr + (batch * out_batch + place * out_position)[:, None] + n.to(tl.int64)[None, :] * out_column
    tl.store(to, cast(value, out_ptr.dtype.element_ty), mask=(m < positions)[:, None] & column[None, :])
