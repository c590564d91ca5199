"""Multi-head self-attention with absolute, relative or rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import rotate

POSITIONS = ("absolute", "relative", "rotary")


class SelfAttention(nn.Module):
    """x (B, T, D) -> (B, T, D).

    ``"relative"`` adds Transformer-XL scores of a sinusoid table, with a learned projection of it and two learned
    query biases; ``"rotary"`` turns projected queries and keys (hubert.md 3.3).

    Args:
        dropout: on the attention weights.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0, positions: str = "absolute"):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads; got {dim} and {heads}")
        self.heads, self.dropout, self.positions = heads, dropout, positions
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        if positions == "relative":
            self.position_proj = nn.Linear(dim, dim, bias=False)
            self.content_bias, self.position_bias = (nn.Parameter(torch.empty(heads, dim // heads)) for _ in range(2))
            nn.init.xavier_uniform_(self.content_bias)
            nn.init.xavier_uniform_(self.position_bias)

    def forward(self, x: Tensor, keep: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """keep: bool, broadcastable to (B, heads, T, T), True where a query may look; table: of ``positions``."""
        query, key, value = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        if self.positions == "rotary":
            query, key = rotate(query, table), rotate(key, table)
        elif self.positions == "relative":
            keep = self.position_scores(query, table, keep)
            query = query + self.content_bias[:, None]
        return self.merge(self.attend(query, key, value, keep))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """(B, heads, T, D / heads) -> (B, T, D), projected."""
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def position_scores(self, query: Tensor, table: Tensor, keep: Tensor | None) -> Tensor:
        """What positions add to the scores, -inf where ``keep`` is False: (B, heads, T, T)."""
        frames = query.shape[-2]
        projected = self.position_proj(table.to(query.dtype)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        scores = (query + self.position_bias[:, None]) @ projected.transpose(-2, -1)  # by offset: (B, heads, T, 2T - 1)
        # row i must begin at offset i: with one column more, rows of a flat view are shifted by one each
        flat = F.pad(scores, (0, 1)).flatten(-2)[..., frames - 1 : frames - 1 + frames * (2 * frames - 1)]
        scores = flat.unflatten(-1, (frames, 2 * frames - 1))[..., :frames] * query.shape[-1] ** -0.5
        return scores if keep is None else scores.masked_fill(~keep, float("-inf"))
