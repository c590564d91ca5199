"""The Conformer as the paper uses it: fairseq's block, with absolute, relative or rotary positions (hubert.md 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from ..attention import SelfAttention
from ..norms import LayerNorm
from .base import Encoder, Frames, init_normal_
from .modules import ConvModule, FeedForward


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each pre-norm and residual; then a norm."""

    def __init__(self, dim: int, heads: int, ffn: int, kernel: int, *, positions: str, dropout: float, conv_norm: str):
        super().__init__()
        self.ffn1_norm, self.ffn1 = LayerNorm(dim), FeedForward(dim, ffn, nn.SiLU(), dropout=dropout)
        self.attention_norm = LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout=dropout, positions=positions)
        self.conv_norm = LayerNorm(dim)
        self.conv = ConvModule(dim, kernel, gate="glu", bias=False, dropout=dropout, norm=conv_norm)
        self.ffn2_norm, self.ffn2 = LayerNorm(dim), FeedForward(dim, ffn, nn.SiLU(), dropout=dropout)
        self.norm = LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        x = x + 0.5 * self.ffn1(self.ffn1_norm(x))
        x = x + self.dropout(self.attention(self.attention_norm(x), frames.keep, frames.table))
        x = x + self.conv(self.conv_norm(x), frames.valid)
        return self.norm(x + 0.5 * self.ffn2(self.ffn2_norm(x)))


class Conformer(Encoder):
    """
    Args:
        layers: how many. ffn: inner width of the feed-forward modules. kernel: of the depthwise convolution.
        positions: ``"absolute"`` (the paper: from the positional convolution), ``"relative"`` or ``"rotary"``.
        conv_norm: ``"batch"`` or ``"layer"``. dropout: everywhere in a layer. layer_drop: probability that a layer is
            skipped in training.
    """

    def __init__(self, *, layers: int, dim: int, heads: int, ffn: int, kernel: int = 31, positions: str = "absolute",
                 conv_norm: str = "batch", dropout: float = 0.1, layer_drop: float = 0.05):
        make = {"positions": positions, "dropout": dropout, "conv_norm": conv_norm}
        super().__init__(
            [ConformerLayer(dim, heads, ffn, kernel, **make) for _ in range(layers)],
            dim=dim,
            heads=heads,
            positions=positions,
            layer_drop=layer_drop,
        )
        init_normal_(self)
