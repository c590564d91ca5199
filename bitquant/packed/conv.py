"""PackedConv: 1-D and 2-D convolutions on packed weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant import ops
from bitquant.nn.conv import BitConv
from bitquant.packed.weights import PackedLayer, stand_in


class PackedConv(PackedLayer):
    """x (batch, channels, *space) or (channels, *space) -> as the ``BitConv`` it came from, bit for bit.

    A row of the weight is ordered ``tap * channels_per_group + channel`` (contract 2). Borders, and places
    whose input vector is exactly zero, count 0 (contract 5).

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as in ``nn.Conv1d`` and ``nn.Conv2d``.
        padding: (before, after) of each dimension. padding_mode: as in torch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: list[int],
        stride: list[int],
        padding: list[list[int]],
        dilation: list[int],
        groups: int,
        padding_mode: str,
        device: torch.device | None = None,
        **options,
    ):
        columns = math.prod(kernel_size) * (in_channels // groups)
        super().__init__(out_channels, columns, width=in_channels, device=device, **options)
        self.in_channels, self.kernel_size, self.stride = in_channels, list(kernel_size), list(stride)
        self.padding, self.dilation = [list(pair) for pair in padding], list(dilation)
        self.groups, self.padding_mode = groups, padding_mode

    @classmethod
    def from_trained(cls, layer: BitConv) -> PackedConv:
        """Pack a trained ``BitConv``. ValueError when a value is not finite, or a scale not positive."""
        packed = cls(
            layer.in_channels,
            layer.out_channels,
            kernel_size=layer.kernel_size,
            stride=layer.stride,
            padding=padding_pairs(layer),
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            device=layer.weight.device,
            **cls.options(layer, layer.weight, bias=layer.bias is not None),
        )
        packed.take(layer, layer.weight, layer.weight_quantizer.signs(layer.weight).movedim(1, -1).flatten(1))
        return packed

    @property
    def weight(self) -> Tensor:
        return stand_in(
            (self.rows, self.in_channels // self.groups, *self.kernel_size), self.lanes.device, self.dtype, self
        )

    def spec(self) -> dict:
        shape = ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        return {"out_channels": self.rows, **{name: getattr(self, name) for name in shape}, **super().spec()}

    def forward(self, x: Tensor) -> Tensor:
        padding = [side for pair in self.padding for side in pair]
        if self.padding_mode != "zeros":
            x = F.pad(x, [side for pair in reversed(self.padding) for side in pair], mode=self.padding_mode)
            padding = [0] * len(padding)
        batched = x if x.ndim == len(self.kernel_size) + 2 else x.unsqueeze(0)
        if self.float_path is None:
            out = self.product(batched, padding)
        else:
            channels = -len(self.kernel_size) - 1
            out = self.float_path(batched, lambda rest: self.product(rest, padding), dim=channels)
        return out if batched is x else out.squeeze(0)

    def product(self, x: Tensor, padding: list[int]) -> Tensor:
        """The packed convolution of x (batch, channels, *space); padding: before and after, two numbers a dimension."""
        return ops.convolution(
            x,
            self.offset,
            self.step,
            self.bits,
            self.signed,
            self.lanes,
            self.rows,
            self.kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            self.scale,
            self.bias,
        )

    def extra_repr(self) -> str:
        return f"{self.in_channels} -> {self.rows}, kernel {self.kernel_size}, {self.levels_repr()}"


def padding_pairs(layer: BitConv | nn.Conv1d | nn.Conv2d) -> list[list[int]]:
    """(before, after) of each dimension; an odd ``same`` padding has its longer side after, as in torch."""
    if layer.padding == "valid":
        return [[0, 0] for _ in layer.kernel_size]
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [[total // 2, total - total // 2] for total in totals]
    return [[p, p] for p in layer.padding]
