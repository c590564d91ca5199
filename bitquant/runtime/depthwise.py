"""Depthwise 1-d convolutions in float, such as a Conformer's: channels last, so that vectors run over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitquant.capture import mutate_class_, original_class

from .onednn import inference_on_cpu


class ChannelsLastConv1d:
    """Put in front of a depthwise ``nn.Conv1d``: (B, C, T) is an image of one row, its weight's order made per call."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or not inference_on_cpu(self, x):
            return super().forward(x)
        image, weight = (t.unsqueeze(2).contiguous(memory_format=torch.channels_last) for t in (x, self.weight))
        padding = self.padding if isinstance(self.padding, str) else (0, *self.padding)
        geometry = (1, *self.stride), padding, (1, *self.dilation), self.groups
        return F.conv2d(image, weight, self.bias, *geometry).squeeze(2)


def unsupported(conv: nn.Module) -> str | None:
    """Why a module is not to be replaced, or None."""
    if original_class(conv) is not nn.Conv1d or parametrize.is_parametrized(conv):
        return "not a float Conv1d"
    if not 1 < conv.groups == conv.in_channels:
        return "not depthwise"
    if conv.padding_mode != "zeros":
        return f"padding {conv.padding_mode}"
    return None if all(p.dtype == torch.float32 for p in conv.parameters()) else "not float32"


def replace_(conv: nn.Module, dtype: torch.dtype) -> None:
    """``dtype`` has no say: so few products are not worth the casts around them."""
    mutate_class_(conv, ChannelsLastConv1d, name="ChannelsLastConv1d")
