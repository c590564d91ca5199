"""The binary products, as torch operators (``torch.ops.bitquant.*``, defined in ``operators``).

``naive`` defines them in plain torch and serves every device; on the CPU the ``native`` kernels take over where they
can, on a GPU those of ``triton``. Layouts: ``bitquant.packing``. No op is differentiable: training uses the float
products of ``bitquant.nn``.
"""

from __future__ import annotations

from torch import Tensor

from . import operators
from .bound import BoundLinear
from .dispatch import Backend, BackendUnavailable, backends, use_backend

__all__ = [
    "Backend",
    "BackendUnavailable",
    "BoundLinear",
    "backends",
    "binary_attention_rowmax",
    "binary_attention_table",
    "binary_linear",
    "bits_of_linear",
    "convolution",
    "integer_linear",
    "linear_of_bits",
    "threshold_pack",
    "use_backend",
]


def threshold_pack(x: Tensor, threshold: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    """Signs of activations as bits (contract 3): ``x >= threshold``, or ``x > threshold`` where ``strict``.

    Args:
        x: (..., K) fp32, fp16, bf16 or fp64, compared in fp32.
        threshold: fp32 [K] or [1]: ``-b`` of the signed set, ``fl(alpha/2 - b)`` of {0,1}.
        strict: True for the set {0,1}, where a tie is 0.

    Returns:
        words int32 (..., ceil(K/32)) with zero tail bits, and the number of ones int32 (...).

    Raises:
        ValueError: NaN in ``x``, or a wrong dtype or shape.
    """
    return operators.threshold_pack(x, threshold, strict)


def binary_linear(
    x: Tensor, threshold: Tensor, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Binarize ``x`` and multiply it with a +-1 weight: ``fl(fl(acc * scale) + bias)`` (contracts 1 and 2).

    Args:
        x: (..., K) float. ``threshold`` and ``strict`` as in :func:`threshold_pack`: {-1,+1}, or {0,1} where strict.
        lanes: int32 (ceil(N/16), ceil(K/32), 16), ``packing.to_lanes`` of the weight's (N, K) bits.
        out_features: N.
        scale: fp32 [N] or [1].
        bias: fp32 [N] or None.

    Returns:
        (..., N) in the dtype of ``x``, computed in fp32.

    Raises:
        ValueError: NaN in ``x``, or a wrong dtype or shape.
    """
    return operators.binary_linear(x, threshold, strict, lanes, out_features, scale, bias)


def linear_of_bits(
    words: Tensor, features: int, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    """:func:`binary_linear` on an input that is bits already.

    Args:
        words: int32 (..., ceil(K/32)), as :func:`threshold_pack` gives them. features: K.
        strict: True where they are bits of {0,1}, False of {-1,+1}.
        lanes, out_features, scale, bias: as in :func:`binary_linear`.

    Returns:
        fp32 (..., N).

    Raises:
        ValueError: a wrong dtype or shape.
    """
    return operators.linear_of_bits(words, features, strict, lanes, out_features, scale, bias)


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
    """The bits that :func:`threshold_pack` makes of :func:`linear_of_bits`, or of its ReLU: no float is written.

    Args:
        words, features, strict, lanes, out_features, scale, bias: as in :func:`linear_of_bits`.
        relu: take the ReLU first.
        next_threshold, next_strict: of the layer that reads them, as in :func:`threshold_pack`.

    Returns:
        int32 (..., ceil(N/32)).

    Raises:
        ValueError: the product is NaN, or a wrong dtype or shape.
    """
    return operators.bits_of_linear(
        words, features, strict, lanes, out_features, scale, bias, relu, next_threshold, next_strict
    )


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
    """Quantize ``x`` to k bits and multiply it with a +-1 weight: ``fl(fl(acc * scale) + bias)`` (contracts 1 to 3).

    Args:
        x: (..., K) float.
        offset: fp32 [K] or [1], the shift added to ``x``. step: fp32 [1], the width of a level; None at 32 bits.
        bits: 2, 4 or 8: ``level = clip(rint(fl(fl(x + offset) / step)))``; 32: the float itself.
        signed: levels ``-2^(k-1) .. 2^(k-1) - 1``, else ``0 .. 2^k - 1``.
        lanes, out_features, scale, bias: as in :func:`binary_linear`.

    Returns:
        (..., N) in the dtype of ``x``, computed in fp32.

    Raises:
        ValueError: NaN in ``x``, or a wrong dtype, shape or width.
    """
    return operators.integer_linear(x, offset, step, bits, signed, lanes, out_features, scale, bias)


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
    """Quantize ``x`` and convolve it with a +-1 weight (contracts 1, 2, 3 and 5).

    Borders count 0, and so does every place whose input vector is exactly zero.

    Args:
        x: (B, C, T) or (B, C, H, W) float.
        offset, step, bits, signed: as in :func:`integer_linear`, per channel; at 1 bit ``offset`` is the threshold of
            :func:`threshold_pack`.
        lanes: ``packing.to_lanes`` of the weight's rows, ordered ``tap * C / groups + c``.
        kernel_size, stride, dilation: one number a dimension; padding: before and after, two numbers a dimension.
        scale: fp32 [out_channels] or [1]. bias: fp32 [out_channels] or None.

    Returns:
        (B, out_channels, *space) in the dtype of ``x``, computed in fp32.

    Raises:
        ValueError: NaN in ``x``, or a wrong dtype, shape or width.
    """
    return operators.convolution(
        x, offset, step, bits, signed, lanes, out_channels, kernel_size, stride, padding, dilation, groups, scale, bias
    )


def binary_attention_rowmax(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, margin: Tensor, scale: Tensor
) -> Tensor:
    """Attention of ``bit-plus`` (contract 4): key j is taken iff it is kept and ``s_ij >= max_j s_ij - margin``.

    Args:
        q, k, v: (B, H, Tq, d), (B, H, Tk, d), (B, H, Tk, dv) float, any strides, of which only the signs
            (``x >= 0``) are used.
        keep: bool, broadcastable to (B, H, Tq, Tk), False for padding; or None. The maximum is over kept keys.
        margin: int64, one element: ``floor(ln(1/f)/c)``.
        scale: fp32, one element.

    Returns:
        (B, H, Tq, dv) contiguous, in the dtype of ``q``: ``fl(fl(sum / n) * scale)`` with the sum of
        sign(v) over the n keys taken, 0 where no key is kept.

    Raises:
        ValueError: NaN in ``q``, ``k`` or ``v``, or a wrong dtype or shape.
    """
    return operators.binary_attention_rowmax(q, k, v, keep, margin, scale)


def binary_attention_table(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, table: Tensor, ratio: Tensor, scale: Tensor
) -> Tensor:
    """Attention of ``bit-ref`` (contract 4): softmax(c s)_ij > alpha/2, decided in integers.

    With ``delta_ij = (max_j s_ij - s_ij) / 2`` and Z_i the sum of ``table[delta]`` over kept keys, key j is taken
    iff it is kept and ``table[delta_ij] * 2^24 > ratio * Z_i``.

    Args:
        q, k, v, keep: as in :func:`binary_attention_rowmax`.
        table: int64 [d + 1], ``table[delta] = round(4096 exp(-2 c delta))``: values 0 to 4096.
        ratio: int64, one element: ``round(alpha/2 * 2^24)``, not negative.
        scale: fp32, one element.

    Returns:
        (B, H, Tq, dv) contiguous, in the dtype of ``q``: ``fl(sum of sign(v) over taken keys * scale)``.

    Raises:
        ValueError: NaN in ``q``, ``k`` or ``v``, or a wrong dtype or shape.
    """
    return operators.binary_attention_table(q, k, v, keep, table, ratio, scale)


def embedding(indices: Tensor, packed: Tensor, bits: int, dim: int, scale: Tensor) -> Tensor:
    """Rows of a quantized table: ``fl(scale_row * level)``, a level being +-1 at 1 bit, or the odd integer that is the
    sum of ``+-2^bit``.

    Args:
        indices: int64 or int32, any shape.
        packed: uint8 (bits * V, ceil(dim/8)), ``packing.pack_bits`` of one table of V rows for each bit, the lowest
            first.
        bits: 1, 2, 4 or 8.
        dim: number of columns.
        scale: fp32 [V] or [1].

    Returns:
        fp32 (*indices.shape, dim).

    Raises:
        IndexError: an index below 0 or not below V.
        ValueError: a wrong dtype or shape.
    """
    return operators.embedding(indices, packed, bits, dim, scale)
