"""The one bit layout (contract 2): little-endian along K, row-major, 1 = +1 (or 1 of {0,1}).

Three forms of the same bits:

* bytes: uint8 (..., ceil(K/8)), on disk.
* words: int32 (..., ceil(K/32)), a row of activations in memory; the bits above K are zero.
* lanes: int32 (ceil(N/16), ceil(K/32), 16), resident weights of the CPU kernels: word ``w`` of 16 neighbouring rows
  side by side, so that one 16-lane register works for 16 outputs and nothing is summed across lanes. Missing rows
  are zero.

Words are bytes read as little-endian integers, hence every function here wants a little-endian host.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16
"""Rows side by side in one group of the lanes form."""

WORD_BITS = 32


def words_for(k: int) -> int:
    """Number of 32-bit words that hold ``k`` bits."""
    return (k + WORD_BITS - 1) // WORD_BITS


def bytes_for(k: int) -> int:
    """Number of bytes that hold ``k`` bits."""
    return (k + 7) // 8


def pack_bits(bits: Tensor) -> Tensor:
    """bool (..., K) -> uint8 (..., ceil(K/8)), bit i of byte j = element 8 j + i. ValueError if not bool or K = 0."""
    _expect_dtype(bits, torch.bool, "bits")
    k = _last_dim(bits, "bits")
    octets = torch.nn.functional.pad(bits, (0, -k % 8)).view(torch.uint8).unflatten(-1, (-1, 8))
    packed = _fresh(octets[..., 0])
    for i in range(1, 8):
        packed |= octets[..., i] << i
    return packed


def unpack_bits(packed: Tensor, k: int) -> Tensor:
    """uint8 (..., ceil(k/8)) -> bool (..., k). ValueError: wrong dtype or byte count, or a set bit above ``k``."""
    check_packed(packed, k)
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :k].to(torch.bool)


def to_words(packed: Tensor, k: int) -> Tensor:
    """uint8 (..., ceil(k/8)) -> int32 (..., ceil(k/32)). ValueError as for :func:`unpack_bits`."""
    check_packed(packed, k)
    padded = packed.new_zeros(*packed.shape[:-1], 4 * words_for(k))
    padded[..., : packed.shape[-1]] = packed
    return padded.view(torch.int32)


def to_bytes(words: Tensor, k: int) -> Tensor:
    """int32 (..., ceil(k/32)) -> uint8 (..., ceil(k/8)). ValueError: wrong dtype or count, a set bit above ``k``."""
    _expect_dtype(words, torch.int32, "words")
    if _last_dim(words, "words") != words_for(k):
        raise ValueError(f"{k} bits take {words_for(k)} words a row, got {words.shape[-1]}")
    all_bytes = _fresh(words).view(torch.uint8)
    packed = _fresh(all_bytes[..., : bytes_for(k)])
    if all_bytes[..., bytes_for(k) :].any():
        raise ValueError(f"bits above the {k} valid ones must be zero")
    check_packed(packed, k)
    return packed


def to_lanes(words: Tensor) -> Tensor:
    """int32 (N, Kw) -> int32 (ceil(N/16), Kw, 16): ``lanes[g, w, l] = words[16 g + l, w]``, zero for rows beyond N."""
    _expect_dtype(words, torch.int32, "words")
    if words.ndim != 2:
        raise ValueError(f"words of a weight have two dimensions (rows, words), got {tuple(words.shape)}")
    padded = torch.nn.functional.pad(words, (0, 0, 0, -words.shape[0] % LANES))
    return padded.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()


def from_lanes(lanes: Tensor, n: int) -> Tensor:
    """int32 (ceil(n/16), Kw, 16) -> int32 (n, Kw), undoes :func:`to_lanes`. ValueError: wrong dtype or shape."""
    _expect_dtype(lanes, torch.int32, "lanes")
    groups = (n + LANES - 1) // LANES
    if lanes.ndim != 3 or lanes.shape[0] != groups or lanes.shape[2] != LANES:
        raise ValueError(f"lanes of {n} rows have shape ({groups}, words, {LANES}), got {tuple(lanes.shape)}")
    return _fresh(lanes.transpose(1, 2).flatten(0, 1)[:n])


def check_packed(packed: Tensor, k: int) -> None:
    """ValueError unless ``packed`` is uint8 with ceil(k/8) bytes a row and no bit above ``k`` set."""
    _expect_dtype(packed, torch.uint8, "packed bits")
    if _last_dim(packed, "packed bits") != bytes_for(k):
        raise ValueError(f"{k} bits take {bytes_for(k)} bytes a row, got {packed.shape[-1]}")
    if k % 8 and (packed[..., -1] >> (k % 8)).any():
        raise ValueError(f"bits above the {k} valid ones must be zero")


def _fresh(tensor: Tensor) -> Tensor:
    """A dense copy. ``contiguous`` keeps odd strides of dimensions of size 1, which a view as another dtype refuses."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _expect_dtype(tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")


def _last_dim(tensor: Tensor, name: str) -> int:
    if tensor.ndim == 0 or tensor.shape[-1] == 0:
        raise ValueError(f"{name} need a last dimension of at least one element, got shape {tuple(tensor.shape)}")
    return tensor.shape[-1]
