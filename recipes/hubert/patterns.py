"""Sparse attention patterns as boolean masks, and the fixed pattern as a gather (hubert.md 5)."""

from __future__ import annotations

import torch
from torch import Tensor

PATTERNS = ("dense", "fixed", "strided", "local", "fairseq_compat")


def pattern_mask(kind: str, frames: int, *, block: int = 32, summary: int = 8,
                 device: torch.device | None = None) -> Tensor:
    """bool (frames, frames): row i holds the keys that query i looks at; no row is empty.

    Args:
        kind: ``"dense"``; ``"local"``: at most ``block`` away; ``"strided"``: local, or a multiple of ``block`` away;
            ``"fixed"``: the same block, or the last ``summary`` frames of any block; ``"fairseq_compat"``: the sets
            fairseq's code describes, windows closed at both ends and summaries one frame longer (hubert.md 5.2).

    Raises:
        ValueError: unknown kind, or not 1 <= summary <= block.
    """
    if kind not in PATTERNS:
        raise ValueError(f"the attention pattern must be one of {', '.join(PATTERNS)}; got {kind!r}")
    if not 1 <= summary <= block:
        raise ValueError(f"the pattern needs 1 <= summary <= block; got summary={summary}, block={block}")
    query, key = torch.arange(frames, device=device)[:, None], torch.arange(frames, device=device)[None]
    if kind == "dense":
        return torch.ones(frames, frames, dtype=torch.bool, device=device)
    if kind in ("local", "strided"):
        near = (query - key).abs() <= block
        return near if kind == "local" else near | ((query - key) % block == 0)
    if kind == "fixed":
        return (query // block == key // block) | (key % block >= block - summary)
    # a query on the boundary of two blocks belongs to the earlier one
    start = (query - 1).clamp(min=0) // block * block
    window = (key >= start) & (key <= start + block)
    return window | (key % block >= block - summary) | ((key % block == 0) & (key >= block))


def fixed_gather(frames: int, *, block: int, summary: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The ``"fixed"`` pattern by blocks of queries, which all look at the same keys.

    Returns:
        (index int64, allowed bool), both (blocks, block + blocks * summary): the keys of each block of queries, its
        own first, then every block's summary; not allowed are frames behind the end and keys listed twice.
    """
    blocks = -(-frames // block)
    own = torch.arange(blocks * block, device=device).view(blocks, block)
    summaries = own[:, block - summary :].reshape(1, -1).expand(blocks, -1)
    again = summaries // block == torch.arange(blocks, device=device)[:, None]
    index = torch.cat([own, summaries], dim=1)
    allowed = (index < frames) & ~torch.cat([torch.zeros_like(own, dtype=torch.bool), again], dim=1)
    return index.clamp(max=frames - 1), allowed
