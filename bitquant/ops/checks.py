"""Checks of the ops' arguments, for every backend: the native kernels index raw memory, so a shape must not lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..packing import LANES, bytes_for, words_for

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_EXACT = 1 << 24
"""Sums of +-1 below this are exact in fp32 (contract 1)."""
END = 1 << 31
"""Sizes, and what a kernel multiplies of them, stay below: its integers hold no more."""


def one_device(arguments: tuple) -> None:
    """ValueError unless all tensors among the arguments are on one device."""
    devices = {x.device for x in arguments if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"all tensors of an op must be on one device, got {' and '.join(sorted(map(str, devices)))}")


def has_memory(x: Tensor) -> bool:
    """Whether there is something at its address, which tells where its storage begins only without an offset."""
    return bool(x.data_ptr() and x.untyped_storage().nbytes()) or not x.numel()


def memory(arguments: tuple) -> None:
    """ValueError unless every tensor among the arguments has memory: kernels read what its address points to."""
    for x in arguments:
        if isinstance(x, Tensor) and not has_memory(x):
            raise ValueError(
                f"a tensor of shape {tuple(x.shape)} has no memory: its storage is resized to 0, or it is a zero tensor"
            )


def threshold_pack(x: Tensor, threshold: Tensor) -> None:
    shape = x.shape
    if x.dtype not in FLOATS:
        raise ValueError(f"x must be a float tensor, got {x.dtype}")
    if not shape or not 0 < shape[-1] < MAX_EXACT:
        raise ValueError(f"x needs a last dimension of 1 to 2^24 - 1 features, got shape {tuple(shape)}")
    vector(threshold, shape[-1], "threshold")


def binary_linear(
    x: Tensor, threshold: Tensor, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> None:
    threshold_pack(x, threshold)
    weight(x.shape[-1], lanes, out_features, scale, bias)


def words(words: Tensor, features: int) -> None:
    count = words_for(features)
    if words.dtype is not torch.int32 or words.ndim == 0 or words.shape[-1] != count:
        raise ValueError(
            f"bits of {features} features are int32 (..., {count}), got {words.dtype} {tuple(words.shape)}"
        )


def weight(k: int, lanes: Tensor, n: int, scale: Tensor, bias: Tensor | None) -> None:
    shape = (-(-n // LANES), words_for(k), LANES)
    if lanes.shape != shape or not 0 < n < END or k < 1 or lanes.dtype is not torch.int32:
        raise ValueError(f"{k} -> {n} features need int32 lanes {shape}, got {lanes.dtype} {tuple(lanes.shape)}")
    vector(scale, n, "scale")
    if bias is not None:
        vector(bias, n, "bias", scalar=False)


def quantizer(bits: int, step: Tensor | None, columns: int) -> None:
    """``columns`` levels, each with a weight of +-1, make a sum."""
    if bits not in (1, 2, 4, 8, 32):
        raise ValueError(f"bits must be 1, 2, 4, 8 or 32, got {bits}")
    if bits <= 8 and (columns << bits if bits > 1 else columns + 1) > MAX_EXACT:
        raise ValueError(f"sums of {columns} levels of {bits} bits are not exact in float32")
    if 1 < bits <= 8:
        if step is None:
            raise ValueError(f"{bits}-bit levels need a step")
        vector(step, 1, "step")


def output_size(space, kernel_size, stride, padding, dilation) -> list[int]:
    """Length of each dimension after a convolution; ``padding`` is before and after, two numbers a dimension."""
    return [
        (length + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(space)
    ]


def convolution(
    x, offset, step, bits, signed, lanes, out_channels, kernel_size, stride, padding, dilation, groups, scale, bias
) -> None:
    space = len(kernel_size)
    if space not in (1, 2) or x.ndim != space + 2 or x.dtype not in FLOATS:
        raise ValueError(f"x must be a float tensor (B, C, T) or (B, C, H, W), got {x.dtype} {tuple(x.shape)}")
    if (len(stride), len(dilation), len(padding)) != (space, space, 2 * space):
        raise ValueError(f"a {space}-D convolution needs {space} strides and dilations and {2 * space} paddings")
    numbers = *kernel_size, *stride, *dilation, *(n + 1 for n in padding), groups, out_channels
    if not all(isinstance(n, int) and 0 < n < END for n in numbers):
        raise ValueError(
            "kernel, stride, dilation, groups and channels must be at least 1, padding at least 0, all whole numbers"
            " below 2^31"
        )
    channels = x.shape[1]
    if channels < 1 or channels % groups or out_channels % groups:
        raise ValueError(f"{channels} and {out_channels} channels cannot be split into {groups} groups")
    if min(x.shape[2:]) < 1 or min(output_size(x.shape[2:], kernel_size, stride, padding, dilation)) < 1:
        raise ValueError(f"an input of size {tuple(x.shape[2:])} is smaller than the kernel {list(kernel_size)}")
    padded = [length + padding[2 * i] + padding[2 * i + 1] for i, length in enumerate(x.shape[2:])]
    if math.prod(padded) >= END:
        raise ValueError(f"an input of {math.prod(padded)} places with its padding is too large: at most 2^31 - 1")
    columns = math.prod(kernel_size) * (channels // groups)
    quantizer(bits, step, columns)
    vector(offset, channels, "offset")
    shape = ((out_channels + LANES - 1) // LANES, words_for(columns), LANES)
    if lanes.shape != shape or lanes.dtype != torch.int32:
        raise ValueError(f"this convolution needs int32 lanes {shape}, got {lanes.dtype} {tuple(lanes.shape)}")
    vector(scale, out_channels, "scale")
    if bias is not None:
        vector(bias, out_channels, "bias", scalar=False)


def binary_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, scale: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in FLOATS or x.dim() != 4:
            raise ValueError(f"{name} must be a float tensor (B, H, T, d), got {x.dtype} {tuple(x.shape)}")
    b, h, tq, d = q.shape
    *values, tk, dv = v.shape
    if k.shape != (b, h, tk, d) or values != [b, h] or d == 0 or dv == 0:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} must agree in B and H, k and v in length,"
            " q and k in d"
        )
    if d >= MAX_EXACT or tk >= MAX_EXACT:
        raise ValueError(f"length {tk} and head size {d} must be below 2^24, where sums stop being exact")
    if tq >= END or dv >= END or tk * max(d, dv) >= END:
        raise ValueError(f"{tk} keys of size {d} and values of size {dv} are too many for one head: below 2^31 numbers")
    if keep is not None:
        fits = keep.ndim <= 4 and all(
            n in (1, full) for n, full in zip(reversed(keep.shape), (tk, tq, h, b), strict=False)
        )
        if keep.dtype != torch.bool or not fits:
            raise ValueError(
                f"keep must be bool and broadcast to {(b, h, tq, tk)}, got {keep.dtype} {tuple(keep.shape)}"
            )
    vector(scale, 1, "scale")


def rowmax(margin: Tensor) -> None:
    _integers(margin, 1, "margin")


def table(entries: Tensor, ratio: Tensor, d: int) -> None:
    _integers(entries, d + 1, "table")
    _integers(ratio, 1, "ratio")


def embedding(indices: Tensor, packed: Tensor, bits: int, dim: int, scale: Tensor) -> None:
    if indices.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"indices must be int64 or int32, got {indices.dtype}")
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits must be 1, 2, 4 or 8, got {bits}")
    shape, width = tuple(packed.shape), bytes_for(dim)
    if packed.dtype != torch.uint8 or packed.ndim != 2 or not 0 < dim < END or shape[1] != width or shape[0] % bits:
        raise ValueError(
            f"packed rows of {dim} columns must be uint8 ({bits} * V, {width}), got {packed.dtype} {shape}"
        )
    vector(scale, shape[0] // bits, "scale")


def vector(x: Tensor, n: int, name: str, scalar: bool = True) -> None:
    size = x.numel()
    if (size != n and not (scalar and size == 1)) or x.ndim > 1 or x.dtype is not torch.float32:
        wanted = f"[{n}] or [1]" if scalar and n != 1 else f"[{n}]"
        raise ValueError(f"{name} must be float32 {wanted}, got {x.dtype} {list(x.shape)}")


def _integers(x: Tensor, n: int, name: str) -> None:
    if x.dtype != torch.int64 or x.numel() != n or x.ndim > 1:
        raise ValueError(f"{name} must be int64 with {n} elements, got {x.dtype} {list(x.shape)}")
