"""PackedLinear: a linear layer on packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant import ops
from bitquant.nn.linear import BitLinear
from bitquant.packed.weights import PackedWeight, positive


class PackedLinear(PackedWeight):
    """``fl(fl(acc * scale) + bias)`` of the binarized input and the packed weight: x (..., in_features) of any float
    dtype -> (..., out_features) of the same dtype. Equal, bit for bit, to the eval-mode ``BitLinear`` it came from.

    Buffers beside the weight: ``threshold`` fp32 [in_features], ``scale`` fp32 [out_features] or [1] (activation
    times weight scale), ``bias`` fp32 [out_features] or absent.

    Args:
        strict: the input uses the {0, 1} set (``x > threshold``) rather than {-1, +1} (``x >= threshold``).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strict: bool,
        bias: bool,
        scales: int,
        device: torch.device | None = None,
    ):
        super().__init__(out_features, in_features, device=device)
        self.strict = strict
        self.register_buffer("threshold", torch.zeros(in_features, device=device))
        self.register_buffer("scale", torch.ones(scales, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device) if bias else None)

    @classmethod
    @torch.no_grad()
    def from_trained(cls, layer: BitLinear) -> PackedLinear:
        """Pack a trained ``BitLinear``. ValueError when a scale is not positive and finite."""
        quantizer, weight = layer.input_quantizer, layer.weight
        scale = quantizer.scale() * layer.weight_quantizer.scale(weight)
        positive(scale)
        packed = cls(
            layer.in_features,
            layer.out_features,
            strict=quantizer.levels == "unit",
            bias=layer.bias is not None,
            scales=scale.numel(),
            device=weight.device,
        )
        packed.pack(layer.weight_quantizer.signs(weight))
        packed.threshold.copy_(quantizer.threshold())
        packed.scale.copy_(scale)
        if layer.bias is not None:
            packed.bias.copy_(layer.bias)
        return packed

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton."""
        return {
            "in_features": self.columns,
            "out_features": self.rows,
            "strict": self.strict,
            "bias": self.bias is not None,
            "scales": self.scale.numel(),
        }

    def forward(self, x: Tensor) -> Tensor:
        return ops.binary_linear(x, self.threshold, self.strict, self.lanes, self.rows, self.scale, self.bias)

    def extra_repr(self) -> str:
        return f"{self.columns} -> {self.rows}, {'{0, 1}' if self.strict else '{-1, +1}'} input"
