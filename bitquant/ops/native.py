"""The CPU kernels of ``bitquant/ops/cpu``, loaded once with ctypes."""

from __future__ import annotations


def unavailable_reason() -> str | None:
    """Why the library cannot be used, or None."""
    return "not built yet"


def instruction_sets() -> list[str]:
    return []


def instruction_set() -> str | None:
    return None
