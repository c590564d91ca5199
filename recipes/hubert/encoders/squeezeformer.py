"""The Squeezeformer: attention, feed-forward, convolution, feed-forward; the middle layers at half the frame rate
(hubert.md 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import SelfAttention
from ..norms import LayerNorm
from .base import Encoder, Frames, init_normal_
from .modules import ConvModule, FeedForward

STYLES = ("official", "reordered")


class ScaledResidual(nn.Module):
    """``LN(x + module(scale * x + bias))`` with a learned scale and bias per channel."""

    def __init__(self, dim: int, module: nn.Module):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.module, self.norm = module, LayerNorm(dim)

    def forward(self, x: Tensor, *context: Tensor | None) -> Tensor:
        return self.norm(x + self.module(x * self.scale + self.bias, *context))


class OfficialLayer(nn.Module):
    """The published block: four post-norm residuals, the convolution on 2D channels (hubert.md 4.1). Linear and
    convolution layers keep PyTorch's initialisation, which is the published one: uniform in +-fan_in^-0.5."""

    def __init__(self, dim: int, heads: int, ffn: int, kernel: int, *, positions: str, dropout: float):
        super().__init__()
        attention = SelfAttention(dim, heads, dropout=dropout, positions=positions)
        conv = ConvModule(dim, kernel, gate="swish", bias=True, dropout=dropout, momentum=0.015)
        self.attention = ScaledResidual(dim, attention)
        self.ffn1 = ScaledResidual(dim, FeedForward(dim, ffn, nn.SiLU(), dropout=dropout))
        self.conv = ScaledResidual(dim, conv)
        self.ffn2 = ScaledResidual(dim, FeedForward(dim, ffn, nn.SiLU(), dropout=dropout))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        x = self.ffn1(self.attention(x, frames.keep, frames.table))
        return self.ffn2(self.conv(x, frames.valid))


class ReorderedLayer(nn.Module):
    """A Conformer layer in the Squeezeformer's order, which has the parameter count of the paper's (hubert.md 4.4)."""

    def __init__(self, dim: int, heads: int, ffn: int, kernel: int, *, positions: str, dropout: float):
        super().__init__()
        self.attention_norm = LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout=dropout, positions=positions)
        self.ffn1_norm, self.ffn1 = LayerNorm(dim), FeedForward(dim, ffn, nn.SiLU(), dropout=dropout)
        self.conv_norm, self.conv = LayerNorm(dim), ConvModule(dim, kernel, gate="glu", bias=False, dropout=dropout)
        self.ffn2_norm, self.ffn2 = LayerNorm(dim), FeedForward(dim, ffn, nn.SiLU(), dropout=dropout)
        self.norm = LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        init_normal_(self)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), frames.keep, frames.table))
        x = x + 0.5 * self.ffn1(self.ffn1_norm(x))
        x = x + self.conv(self.conv_norm(x), frames.valid)
        return self.norm(x + 0.5 * self.ffn2(self.ffn2_norm(x)))


class TimeReduction(nn.Module):
    """Half the frame rate: depthwise convolution with stride 2, then pointwise: (B, T, D) -> (B, ceil(T / 2), D).

    Zeros follow the last frame, so that an odd frame at the end gives the same output with and without padding behind
    it; the published code puts a zero frame there instead (hubert.md 4.2).
    """

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel, stride=2, groups=dim)
        self.pointwise = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)
        behind = self.depthwise.kernel_size[0] - 2 + x.shape[1] % 2
        x = F.pad(x.transpose(1, 2), (0, behind))
        return self.pointwise(self.depthwise(x)).transpose(1, 2)


class TimeRecovery(nn.Module):
    """The full frame rate again: every frame twice, a Linear, plus what was there before the reduction."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return before + self.linear(repeat_frames(x, before.shape[1]))


def repeat_frames(x: Tensor, frames: int) -> Tensor:
    """(B, ceil(frames / 2), D) -> (B, frames, D)."""
    return x.repeat_interleave(2, dim=1)[:, :frames]


class Squeezeformer(Encoder):
    """
    Args:
        layers: how many. reduce_at, recover_at: the layer before which the rate is halved, and that before which it is
            full again. reduce_kernel: of the reducing convolution.
        style: ``"official"`` or ``"reordered"`` (the paper's, by its parameter count).
        ffn, kernel, positions, dropout, layer_drop: as for ``Conformer``.

    Hidden states of the layers at half rate are given at the full rate, every frame twice.
    """

    def __init__(self, *, layers: int, dim: int, heads: int, ffn: int, kernel: int = 31, style: str = "official",
                 positions: str = "relative", reduce_at: int = 7, recover_at: int = 15, reduce_kernel: int = 5,
                 dropout: float = 0.1, layer_drop: float = 0.05):
        if style not in STYLES:
            raise ValueError(f"the Squeezeformer's style must be one of {', '.join(STYLES)}; got {style!r}")
        if not 0 <= reduce_at < recover_at < layers:
            raise ValueError(f"needs 0 <= reduce_at < recover_at < layers; got {reduce_at}, {recover_at}, {layers}")
        layer = OfficialLayer if style == "official" else ReorderedLayer
        super().__init__(
            [layer(dim, heads, ffn, kernel, positions=positions, dropout=dropout) for _ in range(layers)],
            dim=dim,
            heads=heads,
            positions=positions,
            layer_drop=layer_drop,
        )
        self.reduce_at, self.recover_at = reduce_at, recover_at
        self.reduction, self.recovery = TimeReduction(dim, reduce_kernel), TimeRecovery(dim)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        full = frames = self.frames(x, valid)
        states = [x]
        for index, layer in enumerate(self.layers):
            if index == self.reduce_at:
                before, x = x, self.reduction(x, valid)
                frames = self.frames(x, None if valid is None else valid[:, ::2])
            elif index == self.recover_at:
                x, frames = self.recovery(x, before), full
            x = self.step(layer, x, frames)
            states.append(x if frames is full else repeat_frames(x, states[0].shape[1]))
        return states
