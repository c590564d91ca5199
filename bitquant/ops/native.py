"""The CPU kernels of ``bitquant/ops/cpu`` behind the functions of ``naive``, loaded once with ctypes.

Outputs are allocated here and filled there; the only work left to Python is to hand over addresses, as a call over a
few tokens costs microseconds.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch  # first, so that its OpenMP runtime is the one the library finds
from torch import Tensor

from . import naive
from .checks import output_size

ABI_VERSION = 2
OK, NAN, INDEX, TABLE, NO_MEMORY, UNSUPPORTED = range(6)  # bq_status of bitquant.h
FILE_NAME = {"darwin": "libbitquant_cpu.dylib", "win32": "bitquant_cpu.dll"}.get(sys.platform, "libbitquant_cpu.so")

_SIGNATURES = {
    "bq_abi_version": (c_int, []),
    "bq_instruction_set_name": (c_char_p, [c_int]),
    "bq_instruction_set": (c_char_p, []),
    "bq_use_instruction_set": (c_int, [c_char_p]),
    "bq_threshold_pack": (c_int, [c_void_p, *[c_int64] * 3, c_void_p, c_int64, c_int, c_void_p, c_void_p, c_int]),
    "bq_linear": (
        c_int,
        [c_void_p, *[c_int64] * 3, c_void_p, c_int64, c_int, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p]
        + [c_int],
    ),
    "bq_integer_linear": (
        c_int,
        [c_void_p, *[c_int64] * 3, c_void_p, c_int64, c_void_p, c_int, c_int, c_void_p, c_int64, c_void_p, c_int64]
        + [c_void_p, c_void_p, c_int],
    ),
    "bq_convolve": (c_int, [c_void_p, c_int]),
    "bq_attention_rowmax": (c_int, [c_void_p, c_void_p, c_int]),
    "bq_attention_table": (c_int, [c_void_p, c_void_p, c_void_p, c_int]),
    "bq_embedding": (c_int, [c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int]),
}


class _Convolution(ctypes.Structure):
    """``bq_convolution`` of bitquant.h."""

    _fields_ = (
        [(name, c_void_p) for name in ("x", "out", "offset", "step", "lanes", "scale", "bias")]
        + [(name, c_int64) for name in ("batch", "channels", "height", "width", "out_channels", "groups")]
        + [(name, c_int64) for name in ("offset_size", "scale_size", "x_batch", "x_channel", "x_row", "x_column")]
        + [(name, 2 * c_int64) for name in ("kernel", "stride", "dilation", "before", "after")]
        + [(name, c_int64) for name in ("bits", "is_signed")]
    )


class _Attention(ctypes.Structure):
    """``bq_attention`` of bitquant.h."""

    _fields_ = (
        [(name, c_void_p) for name in ("q", "k", "v", "keep", "out")]
        + [(name, c_int64) for name in ("batch", "heads", "queries", "keys", "d", "dv")]
        + [(f"{x}_{dim}", c_int64) for x in "qkv" for dim in ("batch", "head", "row")]
        + [(f"keep_{dim}", c_int64) for dim in ("batch", "head", "row", "key")]
        + [("scale", c_void_p)]
    )


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    reason: str | None


def unavailable_reason() -> str | None:
    """Why the library cannot run here, or None."""
    return _load().reason


def instruction_sets() -> list[str]:
    """What the library has that this processor runs, best first; empty without a library."""
    library, names = _load().library, []
    while library and (name := library.bq_instruction_set_name(len(names))):
        names.append(name.decode())
    return names


def instruction_set() -> str | None:
    """The instruction set in use."""
    library = _load().library
    return library.bq_instruction_set().decode() if library else None


def use_instruction_set(name: str) -> None:
    """Switch the process to one of :func:`instruction_sets`. ValueError if it is none of them."""
    if problem := _switch(_load().library, name):
        raise ValueError(problem)


def openmp_runtimes() -> list[str]:
    """OpenMP libraries in this process (Linux). More than one means two thread pools that fight for the cores."""
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "omp" in line.rpartition("/")[2]}
    return sorted(path for path in files if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))


@lru_cache(maxsize=1)
def _load() -> _Loaded:
    # Beside this file; else, where a source tree in the working directory hides the installed package, beside that one.
    package = sys.modules[__package__].__path__
    installed = [Path(entry, *__package__.split(".")) for entry in sys.path]
    found = _libraries(package) or _libraries(installed)
    if not found:
        return _Loaded(
            None,
            f"{FILE_NAME} is not part of this installation, which was made without a working C++17 compiler;"
            " install one (Debian: apt install g++) and reinstall bitquant-torch",
        )
    path = max(found, key=lambda candidate: candidate.stat().st_mtime)
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return _Loaded(None, f"{path} cannot be loaded: {error}")
    if (version := library.bq_abi_version()) != ABI_VERSION:
        return _Loaded(None, f"{path} has interface {version}, this package needs {ABI_VERSION}: build it again")
    forced = os.environ.get("BITQUANT_ISA")
    if forced and (problem := _switch(library, forced)):
        return _Loaded(None, f"BITQUANT_ISA: {problem}")
    return _Loaded(library, None)


def _libraries(folders: Iterable[str | Path]) -> list[Path]:
    return [path for folder in folders if (path := Path(folder, FILE_NAME)).is_file()]


def _switch(library: ctypes.CDLL | None, name: str) -> str | None:
    if library is None:
        return unavailable_reason()
    if library.bq_use_instruction_set(name.encode()) == OK:
        return None
    names = []
    while supported := library.bq_instruction_set_name(len(names)):
        names.append(supported.decode())
    return f"instruction set {name!r} is unknown or not supported by this processor: choose one of {', '.join(names)}"


def threshold_pack(x: Tensor, threshold: Tensor, strict: bool) -> tuple[Tensor, Tensor]:
    k = x.shape[-1]
    rows, count, stride = _rows(x)
    threshold = threshold.contiguous()
    words = torch.empty((*x.shape[:-1], (k + 31) // 32), dtype=torch.int32)
    ones = torch.empty(x.shape[:-1], dtype=torch.int32)
    status = _load().library.bq_threshold_pack(
        rows.data_ptr(), count, k, stride, threshold.data_ptr(), threshold.numel(), strict,
        words.data_ptr(), ones.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _check(status, "x")
    return words, ones


def binary_linear(
    x: Tensor, threshold: Tensor, strict: bool, lanes: Tensor, out_features: int, scale: Tensor, bias: Tensor | None
) -> Tensor:
    rows, count, stride = _rows(x)
    threshold, lanes, scale = threshold.contiguous(), lanes.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    out = torch.empty((*x.shape[:-1], out_features), dtype=torch.float32)
    status = _load().library.bq_linear(
        rows.data_ptr(), count, x.shape[-1], stride, threshold.data_ptr(), threshold.numel(), strict,
        lanes.data_ptr(), out_features, scale.data_ptr(), scale.numel(), None if bias is None else bias.data_ptr(),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _check(status, "x")
    return out if x.dtype == torch.float32 else out.to(x.dtype)


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
    if bits == 1:
        return binary_linear(x, offset, not signed, lanes, out_features, scale, bias)
    if bits == 32:  # a float product: torch's own
        return naive.integer_linear(x, offset, step, bits, signed, lanes, out_features, scale, bias)
    rows, count, stride = _rows(x)
    offset, lanes, scale = offset.contiguous(), lanes.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    out = torch.empty((*x.shape[:-1], out_features), dtype=torch.float32)
    status = _load().library.bq_integer_linear(
        rows.data_ptr(), count, x.shape[-1], stride, offset.data_ptr(), offset.numel(), step.data_ptr(), bits, signed,
        lanes.data_ptr(), out_features, scale.data_ptr(), scale.numel(), None if bias is None else bias.data_ptr(),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _check(status, "x")
    return out if x.dtype == torch.float32 else out.to(x.dtype)


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
    if bits == 32 or x.dtype == torch.float64:  # a float64 that is no zero may be one in float32
        return naive.convolution(
            x, offset, step, bits, signed, lanes, out_channels, kernel_size, stride, padding, dilation, groups,
            scale, bias,
        )  # fmt: skip
    dtype, space = x.dtype, x.shape[2:]
    size = output_size(space, kernel_size, stride, padding, dilation)
    out = torch.empty((x.shape[0], out_channels, *size), dtype=torch.float32)
    x = _fp32(x)
    if len(space) == 1:  # an image of one row
        x = x.unsqueeze(2)
        kernel_size, stride, dilation, padding = [1, *kernel_size], [1, *stride], [1, *dilation], [0, 0, *padding]
    offset, lanes, scale = offset.contiguous(), lanes.contiguous(), scale.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    pairs = 2 * c_int64
    call = _Convolution(
        x.data_ptr(), out.data_ptr(), offset.data_ptr(), None if step is None else step.data_ptr(), lanes.data_ptr(),
        scale.data_ptr(), None if bias is None else bias.data_ptr(), *x.shape, out_channels, groups, offset.numel(),
        scale.numel(), *x.stride(), pairs(*kernel_size), pairs(*stride), pairs(*dilation), pairs(*padding[::2]),
        pairs(*padding[1::2]), bits, signed,
    )  # fmt: skip
    _check(_load().library.bq_convolve(ctypes.addressof(call), torch.get_num_threads()), "x")
    return out if dtype == torch.float32 else out.to(dtype)


def binary_attention_rowmax(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, margin: Tensor, scale: Tensor
) -> Tensor:
    return _attend("bq_attention_rowmax", q, k, v, keep, scale, margin)


def binary_attention_table(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, table: Tensor, ratio: Tensor, scale: Tensor
) -> Tensor:
    return _attend("bq_attention_table", q, k, v, keep, scale, table.contiguous(), ratio)


def _attend(
    function: str, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, scale: Tensor, *rule: Tensor
) -> Tensor:
    dtype = q.dtype
    q, k, v = _heads(q), _heads(k), _heads(v)
    (b, h, tq, d), tk, dv = q.shape, k.shape[2], v.shape[3]
    keep_address, keep_strides = None, (0, 0, 0, 0)
    if keep is not None:
        keep = keep.expand(b, h, tq, tk)
        keep_address, keep_strides = keep.data_ptr(), keep.stride()
    out = torch.empty((b, h, tq, dv), dtype=torch.float32)
    call = _Attention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), keep_address, out.data_ptr(), b, h, tq, tk, d, dv,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *keep_strides, scale.data_ptr(),
    )  # fmt: skip
    library = _load().library
    status = getattr(library, function)(
        ctypes.addressof(call), *(part.data_ptr() for part in rule), torch.get_num_threads()
    )
    _check(status, "q, k or v")
    return out if dtype == torch.float32 else out.to(dtype)


def binary_embedding(indices: Tensor, packed: Tensor, dim: int, scale: Tensor) -> Tensor:
    flat = indices.to(torch.int64).contiguous()
    packed, scale = packed.contiguous(), scale.contiguous()
    out = torch.empty((*indices.shape, dim), dtype=torch.float32)
    rows = packed.shape[0]
    status = _load().library.bq_embedding(
        flat.data_ptr(), flat.numel(), packed.data_ptr(), rows, dim, scale.data_ptr(), scale.numel(),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if status == INDEX:
        raise IndexError(f"an index is outside the embedding's {rows} rows (0 to {rows - 1})")
    _check(status, "packed")
    return out


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """``x`` in fp32 as rows with a dense last dimension, their number and the stride between them."""
    x = _fp32(x)
    if x.ndim == 2 and x.stride(1) == 1:
        return x, x.shape[0], x.stride(0)
    k = x.shape[-1]
    return x.contiguous(), x.numel() // k, k


def _fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 else x.to(torch.float32)


def _heads(x: Tensor) -> Tensor:
    x = _fp32(x)
    return x if x.stride(3) == 1 else x.contiguous()


def _check(status: int, name: str) -> None:
    if status == OK:
        return
    if status == NAN:
        raise ValueError(f"{name} holds NaN, which has no sign bit")
    if status == TABLE:
        raise ValueError("table entries must be 0 to 4096 and the ratio not negative")
    raise MemoryError("no memory for the scratch space of a CPU kernel")
