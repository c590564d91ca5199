"""What the kernels find to run on, and which of them runs a product there, each with its reason (contract 6).

Nothing here is asked before the first op on a GPU tensor, or ``bitquant doctor``.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

FEW_ROWS = 16
"""Up to here a tile of a tensor core would be half empty."""

KERNELS = ("b1", "int8", "popc")


class Device(NamedTuple):
    """``kind``: "cuda", "hip", or "interpreter" for CPU tensors. ``capability``: 80 for sm_80; 0 unless "cuda".
    ``architecture``: "gfx942"; empty unless "hip". ``processors``: number of multiprocessors."""

    kind: str
    capability: int
    architecture: str
    name: str
    processors: int


INTERPRETER = Device("interpreter", 0, "", "Triton's interpreter", 1 << 30)


def interpreted() -> bool:
    """Whether Triton was told to run kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def unavailable_reason() -> str | None:
    """Why no kernel can run here, or None."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        return "triton is not installed (torch's GPU builds for Linux bring it)"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU" if torch.version.cuda or torch.version.hip else "this torch is built without GPUs"
    found = device(torch.device("cuda", 0))
    if found.kind == "cuda" and found.capability < 75:
        return f"{found.name} has capability sm_{found.capability}, Triton needs sm_75"
    return None


def summary() -> str:
    """What the kernels run on, where they do."""
    if interpreted():
        return "Triton's interpreter on CPU tensors (TRITON_INTERPRET), slow and exact"
    return describe(device(torch.device("cuda", torch.cuda.current_device())))


def describe(on: Device) -> str:
    """Every product kernel on a device, the chosen one first, and why it runs there or does not."""
    where = f"sm_{on.capability}" if on.kind == "cuda" else on.architecture
    parts = []
    for kernel in KERNELS:
        runs, reason = kernel_reason(kernel, on)
        parts.append(f"{kernel} {'runs' if runs else 'does not run'}: {reason}")
    parts.sort(key=lambda part: not part.startswith(choose(on, FEW_ROWS + 1)[0]))
    return f"{on.name} ({where}); {'; '.join(parts)}"


def device(of: torch.device) -> Device:
    """The device of a tensor."""
    return INTERPRETER if of.type == "cpu" else _properties(of.index or 0)


@lru_cache(maxsize=64)
def _properties(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Device("hip", 0, found.gcnArchName.partition(":")[0], found.name, found.multi_processor_count)
    return Device("cuda", 10 * found.major + found.minor, "", found.name, found.multi_processor_count)


def kernel_reason(kernel: str, on: Device) -> tuple[bool, str]:
    """Whether a product kernel runs on a device, and why it does or does not."""
    if kernel == "popc":
        return True, f"population counts, for up to {FEW_ROWS} rows and where there is no tensor core"
    if kernel == "b1":
        if on.kind == "cuda" and 80 <= on.capability <= 90:
            return True, f"1-bit tensor cores of sm_{on.capability}"
        if on.kind == "interpreter":
            return True, "emulated"
        where = f"sm_{on.capability}" if on.kind == "cuda" else on.architecture
        return False, f"{where} has no 1-bit tensor cores; sm_80 to sm_90 do"
    if on.kind == "interpreter":
        return True, "emulated"
    if on.kind == "cuda":
        fits = on.capability >= 80
        return fits, f"int8 tensor cores of sm_{on.capability}" if fits else f"sm_{on.capability} is older than sm_80"
    fits = on.architecture in ("gfx908", "gfx90a", "gfx940", "gfx941", "gfx942", "gfx950")
    return fits, f"{on.architecture} {'has' if fits else 'is not known to have'} int8 matrix cores"


def choose(on: Device, rows: int) -> tuple[str, str]:
    """Kernel for a product of ``rows`` rows, and the reason. ``BITQUANT_GPU_KERNEL`` asks for one by name.

    Raises:
        ValueError: an unknown name. RuntimeError: the kernel asked for does not run on this device.
    """
    if name := os.environ.get("BITQUANT_GPU_KERNEL"):
        return require(name, on), "BITQUANT_GPU_KERNEL"
    if rows <= FEW_ROWS:
        return "popc", f"{rows} rows do not fill a tensor core"
    return next((name, reason) for name in KERNELS for runs, reason in [kernel_reason(name, on)] if runs)


def require(kernel: str, on: Device) -> str:
    """``kernel``. ValueError if it is unknown, RuntimeError if it does not run on the device."""
    if kernel not in KERNELS:
        raise ValueError(f"unknown GPU kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    runs, reason = kernel_reason(kernel, on)
    if not runs:
        raise RuntimeError(f"GPU kernel {kernel!r} cannot run: {reason}")
    return kernel


def triton_version() -> str | None:
    """The installed version, or None."""
    for name in ("triton", "pytorch-triton-rocm"):
        with suppress(PackageNotFoundError):
            return version(name)
    return None
