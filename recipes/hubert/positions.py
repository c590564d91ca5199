"""Where a frame is: a convolution, or tables for relative and rotary attention (hubert.md 1.3, 3.3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

KERNEL, GROUPS = 128, 16


class PositionalConv(nn.Module):
    """Grouped convolution over 128 frames with weight norm (one gain a tap), then GELU: (B, T, D) -> (B, T, D).

    The published models pad 64 frames on both sides and drop the extra last frame; 64 on the left and 63 on the right
    is the same without computing it.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim % GROUPS:
            raise ValueError(f"the positional convolution has {GROUPS} groups: dim must be a multiple of it, got {dim}")
        conv = nn.Conv1d(dim, dim, KERNEL, groups=GROUPS)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (KERNEL * dim)))
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (KERNEL // 2, KERNEL // 2 - 1))
        return self.act(self.conv(padded)).transpose(1, 2)


def relative_table(frames: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """fp32 (2 * frames - 1, dim): sines and cosines, interleaved, of the offsets frames-1 ... -(frames-1)."""
    offsets = torch.arange(frames - 1, -frames, -1, device=device, dtype=torch.float32)
    angles = offsets[:, None] * _frequencies(dim, device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def rotary_table(frames: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """fp32 (2, frames, dim): cosines and sines of a head's ``dim`` channels, the second half repeating the first."""
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * _frequencies(dim, device)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """x (..., T, d) turned by ``rotary_table(T, d)``: scores of two rotated vectors depend on their distance only."""
    first, second = x.chunk(2, dim=-1)
    return x * table[0].to(x.dtype) + torch.cat([-second, first], dim=-1) * table[1].to(x.dtype)


def _frequencies(dim: int, device: torch.device | None) -> Tensor:
    return torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / dim))
