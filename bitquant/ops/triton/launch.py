"""How kernels are launched: always without fused multiply-add (contract 1)."""

from __future__ import annotations

PLAIN = {"enable_fp_fusion": False}
"""Options of every launch."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is neither below ``n`` nor below ``least``."""
    return max(least, 1 << max(n - 1, 0).bit_length())
