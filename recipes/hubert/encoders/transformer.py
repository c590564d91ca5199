"""The Transformer of HuBERT base: post-norm layers (hubert.md 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from ..attention import SelfAttention
from ..norms import LayerNorm
from .base import Encoder, Frames, init_normal_
from .modules import FeedForward


class TransformerLayer(nn.Module):
    """``x = LN(x + attention(x)); x = LN(x + feed-forward(x))``."""

    def __init__(self, dim: int, attention: SelfAttention, ffn: FeedForward, *, dropout: float):
        super().__init__()
        self.attention, self.attention_norm = attention, LayerNorm(dim)
        self.ffn, self.ffn_norm = ffn, LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attend(x, frames)))
        return self.ffn_norm(x + self.ffn(x))

    def attend(self, x: Tensor, frames: Frames) -> Tensor:
        return self.attention(x, frames.keep)


class Transformer(Encoder):
    """
    Args:
        layers: how many. ffn: inner width of the feed-forward module.
        dropout: after attention and feed-forward. attention_dropout: on attention weights. activation_dropout: after
            the GELU. layer_drop: probability that a layer is skipped in training.
    """

    layer_type = TransformerLayer

    def __init__(self, *, layers: int, dim: int, heads: int, ffn: int, dropout: float = 0.1,
                 attention_dropout: float = 0.1, activation_dropout: float = 0.0, layer_drop: float = 0.05):
        super().__init__(
            [
                self.layer_type(
                    dim,
                    self.attention(dim, heads, attention_dropout),
                    FeedForward(dim, ffn, nn.GELU(), dropout=dropout, act_dropout=activation_dropout),
                    dropout=dropout,
                )
                for _ in range(layers)
            ],
            dim=dim,
            heads=heads,
            layer_drop=layer_drop,
        )
        init_normal_(self)

    def attention(self, dim: int, heads: int, dropout: float) -> SelfAttention:
        return SelfAttention(dim, heads, dropout=dropout)
