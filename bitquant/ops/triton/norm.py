"""LayerNorm that gives the float and, for the layer that follows, its signs and their number: 1/16 more bytes."""

import triton
import triton.language as tl

from .bits import cast, popcount


@triton.jit(debug=True)  # keeps the assertion in the compiled kernel
def layer_norm(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, threshold_ptr, out_ptr, words_ptr, ones_ptr,
    columns, words_stride, eps, THRESHOLD_STEP: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """One row of ``norm(x + residual) * weight + bias`` a program, and the bits ``out >= threshold`` of the rounded
    output. Rows are contiguous; 32 WORDS is a power of two not below ``columns``."""
    row = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, WORDS)
    c = w[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = c < columns
    x = tl.load(x_ptr + row * columns + c, mask=inside, other=0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + row * columns + c, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(tl.sum(x, 1), 0) / columns
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(tl.sum(centred * centred, 1), 0) / columns
    y = centred * (1.0 / tl.sqrt_rn(variance + eps))
    y = y * tl.load(weight_ptr + c, mask=inside, other=0).to(tl.float32)
    y = y + tl.load(bias_ptr + c, mask=inside, other=0).to(tl.float32)
    out = cast(y, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * columns + c, out, mask=inside)
    y = out.to(tl.float32)
    tl.device_assert(y == y, "NaN reached a binarizer")
    threshold = tl.load(threshold_ptr + c * THRESHOLD_STEP, mask=inside, other=0)
    bit = ((y >= threshold) & inside).to(tl.int32)
    words = tl.sum(bit << tl.arange(0, 32)[None, :], 1)
    tl.store(words_ptr + row * words_stride + w, words, mask=w < words_stride)
    tl.store(ones_ptr + row, tl.sum(popcount(words), 0))
