"""The Sparseformer: a Transformer whose queries look at a pattern of keys (hubert.md 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import SelfAttention
from ..patterns import fixed_gather, pattern_mask
from .base import Frames
from .transformer import Transformer, TransformerLayer

BACKENDS = ("masked", "gather")


class BlockAttention(SelfAttention):
    """Attention in which every block of queries gathers the few keys it may look at."""

    def forward(self, x: Tensor, keep: Tensor, index: Tensor, block: int) -> Tensor:
        """x (B, T, D), index int64 (blocks, keys), keep bool (B or 1, blocks, keys), block: queries in each.

        The blocks become the batch of one attention with ``keys`` keys.
        """
        frames, blocks = x.shape[1], index.shape[0]
        query, key, value = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        query = F.pad(query, (0, 0, 0, blocks * block - frames)).unflatten(2, (blocks, block))
        batch = [t.transpose(1, 2).flatten(0, 1) for t in (query, key[:, :, index], value[:, :, index])]
        mask = keep.expand(x.shape[0], -1, -1).flatten(0, 1)[:, None, None]
        out = self.attend(*batch, mask).unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)
        return self.merge(out[:, :, :frames])


class BlockLayer(TransformerLayer):
    block = 32

    def attend(self, x: Tensor, frames: Frames) -> Tensor:
        return self.attention(x, frames.keep, frames.index, self.block)


class Sparseformer(Transformer):
    """
    Args:
        pattern: one of ``recipes.hubert.patterns.PATTERNS``.
        block: length of a block, or the stride. summary: frames at the end of a block that all queries see.
        backend: ``"masked"``: dense attention under a mask; ``"gather"``, for ``"fixed"``: the same result from the
            keys of the pattern alone, ``block + T / block * summary`` a query instead of T.
        The rest as for ``Transformer``.
    """

    def __init__(self, *, layers: int, dim: int, heads: int, ffn: int, pattern: str = "fixed", block: int = 32,
                 summary: int = 8, backend: str = "masked", dropout: float = 0.1, attention_dropout: float = 0.1,
                 activation_dropout: float = 0.0, layer_drop: float = 0.05):
        if backend not in BACKENDS:
            raise ValueError(f"the sparse attention backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
        if backend == "gather" and pattern != "fixed":
            raise ValueError(f"the gather backend computes the fixed pattern only, not {pattern!r}")
        self.pattern, self.block, self.summary, self.backend = pattern, block, summary, backend
        self.layer_type = BlockLayer if backend == "gather" else TransformerLayer
        super().__init__(
            layers=layers, dim=dim, heads=heads, ffn=ffn, dropout=dropout, attention_dropout=attention_dropout,
            activation_dropout=activation_dropout, layer_drop=layer_drop,
        )  # fmt: skip
        for layer in self.layers:
            layer.block = block
        # of the latest length; a buffer moves with the model
        self.register_buffer("mask", pattern_mask(pattern, 1, block=block, summary=summary), persistent=False)

    def attention(self, dim: int, heads: int, dropout: float) -> SelfAttention:
        return (BlockAttention if self.backend == "gather" else SelfAttention)(dim, heads, dropout=dropout)

    def frames(self, x: Tensor, valid: Tensor | None) -> Frames:
        if self.backend == "masked":
            keep = self.pattern_for(x.shape[1])
            return Frames(valid, keep if valid is None else keep & valid[:, None, None, :])
        index, allowed = fixed_gather(x.shape[1], block=self.block, summary=self.summary, device=x.device)
        keep = allowed[None] if valid is None else allowed[None] & valid[:, index]
        return Frames(valid, keep, index=index)

    def pattern_for(self, frames: int) -> Tensor:
        """bool (frames, frames), kept until another length is asked for; part of the graph where one is exported, so
        that the length stays free."""
        if torch.compiler.is_exporting():
            return pattern_mask(self.pattern, frames, block=self.block, summary=self.summary, device=self.mask.device)
        if self.mask.shape[0] != frames:
            device = self.mask.device
            self.mask = pattern_mask(self.pattern, frames, block=self.block, summary=self.summary, device=device)
        return self.mask

    def density(self, frames: int) -> float:
        """Share of the pairs of frames that the pattern holds."""
        mask = pattern_mask(self.pattern, frames, block=self.block, summary=self.summary)
        return mask.to(torch.float64).mean().item()
