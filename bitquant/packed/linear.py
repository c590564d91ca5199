"""PackedLinear: a linear layer on packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant import ops
from bitquant.nn.linear import BitLinear
from bitquant.packed.deferred import Deferred, consume, defer
from bitquant.packed.weights import PackedLayer


class PackedLinear(PackedLayer):
    """x (..., in_features) of any float dtype -> (..., out_features) of the same dtype. Equal, bit for bit, to the
    eval-mode ``BitLinear`` it came from."""

    def __init__(self, in_features: int, out_features: int, *, device: torch.device | None = None, **options):
        super().__init__(out_features, in_features, width=in_features, device=device, **options)
        self._bound = ops.BoundLinear(in_features, out_features, self.bits, self.signed)
        self.defers_from: int | None = None  # size of an output that is left to the layers behind it; None: never

    @classmethod
    def from_trained(cls, layer: BitLinear) -> PackedLinear:
        """Pack a trained ``BitLinear``. ValueError when a value is not finite, or a scale not positive."""
        out_features, in_features = layer.weight.shape
        packed = cls(
            in_features,
            out_features,
            device=layer.weight.device,
            **cls.options(layer, layer.weight, bias=layer.bias is not None),
        )
        packed.take(layer, layer.weight, layer.weight_quantizer.signs(layer.weight))
        return packed

    def spec(self) -> dict:
        return {"in_features": self.columns, "out_features": self.rows, **super().spec()}

    def forward(self, x: Tensor) -> Tensor:
        if self.defers_from is not None and (out := defer(self, x)) is not None:
            return out
        bias = self._buffers["bias"]
        if (path := self._modules["float_path"]) is not None:
            return path(x, lambda rest: self.product(rest, bias))
        return self.product(x, bias)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The packed product with a bias fp32 [out_features] or None."""
        has = self._buffers  # nn.Module takes as long to find an attribute as the product of one row
        out = self._bound(x, has["offset"], has["step"], has["lanes"], has["scale"], bias)
        if out is not None:
            return out
        if type(x) is Deferred and self.bits == 1 and (out := consume(self, x, bias)) is not None:
            return out
        if self.bits == 1:
            return ops.binary_linear(x, self.offset, not self.signed, self.lanes, self.rows, self.scale, bias)
        return ops.integer_linear(
            x, self.offset, self.step, self.bits, self.signed, self.lanes, self.rows, self.scale, bias
        )

    def extra_repr(self) -> str:
        return f"{self.columns} -> {self.rows}, {self.levels_repr()}"
