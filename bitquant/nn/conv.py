"""BitConv: trainable 1-D and 2-D convolutions whose weight and input are 1 bit (or the input a few)."""

from __future__ import annotations

from torch import Tensor, nn

from bitquant.memory_layout import contiguous
from bitquant.nn.exact import scaled
from bitquant.nn.training import in_int8, integer_product
from bitquant.nn.weights import QuantizedLayer


def is_pointwise(conv: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether each output of a convolution is a linear function of one input vector."""
    return {*conv.kernel_size, *conv.stride, conv.groups} == {1} and (
        conv.padding in ("valid", "same") or set(conv.padding) == {0}
    )


class BitConv(QuantizedLayer):
    """Mixed into ``nn.Conv1d`` or ``nn.Conv2d`` (or a subclass) in place; any stride, dilation, groups and padding.

    x (batch, channels, *space) or (channels, *space) of any float dtype -> the same dtype. Padding is not +1
    (contract 5): borders count 0, and so does every place whose input vector is exactly zero, as in a masked
    frame. The shift is per input channel, the weight scale per output channel or per tensor.
    """

    @property
    def input_width(self) -> int:
        return self.in_channels

    @property
    def pointwise(self) -> bool:
        return is_pointwise(self)

    @property
    def channel_dim(self) -> int:
        return -len(self.kernel_size) - 1

    def product(self, x: Tensor) -> Tensor:
        space, channels = len(self.kernel_size), self.channel_dim
        by_channel = x.movedim(channels, -1)
        levels, alpha = self.input_quantizer(by_channel)
        valid = (by_channel != 0).any(-1, keepdim=True)
        levels = levels * valid
        weight, scale = self.weight_quantizer(self.weight)
        weight = contiguous(weight)
        if self.pointwise and in_int8(levels, inputs=self.input_quantizer, weights=self.weight_quantizer):
            product = integer_product(levels, weight.flatten(1)).movedim(-1, channels)
        else:
            product = self._conv_forward(contiguous(levels.movedim(-1, channels)), weight, None)
        # one layout for every backend: float operations that follow may round by their memory layout
        product = contiguous(product)
        scale = (alpha * scale).view(-1, *[1] * space)
        bias = None if self.bias is None else self.bias.view(-1, *[1] * space)
        return scaled(product, scale, bias)
