"""What every encoder does: run its layers, drop some in training, keep all hidden states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..positions import relative_table, rotary_table


class Frames(NamedTuple):
    """What layers know about the frames of a batch.

    Args:
        valid: bool (B, T), False for padding; None where all are valid.
        keep: bool, broadcastable to (B, heads, queries, keys), for attention; None where all may look at all.
        table: of relative or rotary positions, or None.
        index: keys of each block of queries, where attention gathers them, or None.
    """

    valid: Tensor | None
    keep: Tensor | None
    table: Tensor | None = None
    index: Tensor | None = None


class Encoder(nn.Module):
    """A stack of layers, each called as ``layer(x, frames)``.

    Args:
        layers: each (B, T, D) -> (B, T, D).
        dim: D. heads: of attention, for the rotary table.
        positions: of the layers' attention.
        layer_drop: probability that a layer is skipped in training.

    ``generator`` draws which; None is PyTorch's own. Workers that must skip the same layers set one of equal seed.
    """

    generator: torch.Generator | None = None

    def __init__(self, layers: Iterable[nn.Module], *, dim: int, heads: int, positions: str = "absolute",
                 layer_drop: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dim, self.heads, self.positions, self.layer_drop = dim, heads, positions, layer_drop

    def forward(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """x (B, T, D), valid bool (B, T) -> the input and every layer's output, (B, T, D) each."""
        frames = self.frames(x, valid)
        states = [x]
        for layer in self.layers:
            states.append(self.step(layer, states[-1], frames))
        return states

    def step(self, layer: nn.Module, x: Tensor, frames: Frames) -> Tensor:
        if self.training and self.layer_drop > 0:
            dropped = torch.rand((), generator=self.generator).item() < self.layer_drop
            return x if dropped else layer(x, frames)
        return layer(x, frames)

    def frames(self, x: Tensor, valid: Tensor | None) -> Frames:
        """What the layers need beside x; an encoder with its own attention pattern overrides this."""
        return Frames(valid, None if valid is None else valid[:, None, None, :], self.table(x))

    def table(self, x: Tensor) -> Tensor | None:
        if self.positions == "relative":
            return relative_table(x.shape[1], self.dim, device=x.device)
        if self.positions == "rotary":
            return rotary_table(x.shape[1], self.dim // self.heads, device=x.device)
        return None


def init_normal_(module: nn.Module) -> None:
    """Linear layers as in BERT: weights N(0, 0.02), biases 0 (hubert.md 1.8)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
