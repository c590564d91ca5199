"""BitLinear: a trainable linear layer whose weight and input are 1 bit (or the input a few)."""

from __future__ import annotations

from torch import Tensor

from bitquant.nn.exact import scaled
from bitquant.nn.training import level_product
from bitquant.nn.weights import QuantizedLayer


class BitLinear(QuantizedLayer):
    """Mixed into ``nn.Linear`` (or a subclass) in place: ``(levels(x) @ levels(W).T) * (alpha * s) + bias``.

    x (..., in_features) of any float dtype -> (..., out_features) of the same dtype. The levels are multiplied
    exactly in fp32 (sums of +-1 are exact up to 2^24). With ``QuantConfig.low_rank`` they are the levels of what a
    ``LowRank`` path leaves of x.
    """

    @property
    def input_width(self) -> int:
        return self.weight.shape[1]

    def product(self, x: Tensor) -> Tensor:
        levels, alpha = self.input_quantizer(x)
        weight, scale = self.weight_quantizer(self.weight)
        product = level_product(levels, weight, inputs=self.input_quantizer, weights=self.weight_quantizer)
        return scaled(product, alpha * scale, self.bias)
