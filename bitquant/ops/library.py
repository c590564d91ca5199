"""The shared library of ``bitquant/ops/cpu``: found and loaded once with ctypes, and its instruction sets."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  first, so that its OpenMP runtime is the one the library finds

ABI_VERSION = 7
OK, NAN, INDEX, TABLE, NO_MEMORY, UNSUPPORTED, GEOMETRY = range(7)  # bq_status of bitquant.h
FILE_NAME = {"darwin": "libbitquant_cpu.dylib", "win32": "bitquant_cpu.dll"}.get(sys.platform, "libbitquant_cpu.so")

_SIGNATURES = {
    "bq_abi_version": (c_int, []),
    "bq_instruction_set_name": (c_char_p, [c_int]),
    "bq_instruction_set": (c_char_p, []),
    "bq_use_instruction_set": (c_int, [c_char_p]),
    "bq_limit": (c_int64, [c_int64, c_int]),
    "bq_threshold_pack": (c_int, [c_void_p, *[c_int64] * 3, c_void_p, c_int64, c_int, c_void_p, c_void_p, c_int]),
    "bq_multiply": (c_int, [c_void_p, c_int]),
    "bq_convolve": (c_int, [c_void_p, c_int]),
    "bq_attention_rowmax": (c_int, [c_void_p, c_void_p, c_int]),
    "bq_attention_table": (c_int, [c_void_p, c_void_p, c_void_p, c_int]),
    "bq_elastic_levels": (c_int, [c_void_p, c_int]),
    "bq_elastic_gradient": (c_int, [*[c_void_p] * 5, c_int64, c_int]),
    "bq_embedding": (c_int, [c_void_p, c_int64, c_void_p, *[c_int64] * 3, c_void_p, c_int64, c_void_p, c_int]),
}


class _Loaded(NamedTuple):
    library: ctypes.CDLL | None
    reason: str | None


def unavailable_reason() -> str | None:
    """Why the library cannot run here, or None."""
    return load().reason


def instruction_sets() -> list[str]:
    """What the library has that this processor runs, best first; empty without a library."""
    library, names = load().library, []
    while library and (name := library.bq_instruction_set_name(len(names))):
        names.append(name.decode())
    return names


def instruction_set() -> str | None:
    """The instruction set in use."""
    library = load().library
    return library.bq_instruction_set().decode() if library else None


def use_instruction_set(name: str) -> None:
    """Switch the process to one of :func:`instruction_sets`. ValueError if it is none of them."""
    if problem := _switch(load().library, name):
        raise ValueError(problem)


def openmp_runtimes() -> list[str]:
    """OpenMP libraries in this process (Linux). More than one means two thread pools that fight for the cores."""
    with open("/proc/self/maps") as maps:
        files = {line.split()[-1] for line in maps if "omp" in line.rpartition("/")[2]}
    return sorted(path for path in files if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))


@lru_cache(maxsize=1)
def load() -> _Loaded:
    """The library, or why there is none."""
    # Beside this file; else, where a source tree in the working directory hides the installed package, beside that one.
    package = sys.modules[__package__].__path__
    here = os.path.realpath(os.curdir)  # itself no place to load native code from
    places = [entry for entry in sys.path if os.path.realpath(entry) != here]
    installed = [Path(entry, *__package__.split(".")) for entry in places]
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


def popcount_limit(rounds: int, threads: int) -> int:
    """A loop of the linear kernel's instructions on registers, for benchmarks to time; the multiply-adds done."""
    return load().library.bq_limit(rounds, threads)


def _switch(library: ctypes.CDLL | None, name: str) -> str | None:
    if library is None:
        return unavailable_reason()
    if library.bq_use_instruction_set(name.encode()) == OK:
        return None
    names = []
    while supported := library.bq_instruction_set_name(len(names)):
        names.append(supported.decode())
    return f"instruction set {name!r} is unknown or not supported by this processor: choose one of {', '.join(names)}"
