"""What this processor has instructions of its own for."""

import functools

import torch


def _has(*names: str) -> bool:
    """Whether torch says so of any of these; torch without oneDNN, or too old to say, counts as no."""
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, f"_is_{n}_supported", bool)() for n in names)


@functools.cache
def bfloat16_is_fast() -> bool:
    """Whether products of bfloat16 are."""
    return _has("avx512_bf16", "amx_tile", "amx_bf16")


@functools.cache
def int8_is_fast() -> bool:
    """Whether products of int8 are: without VNNI or AMX torch multiplies them one by one."""
    return _has("vnni", "amx_tile")
