"""PackedFunctionalLinear: ``F.linear`` with a parameter that now exists only as bits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bitquant.nn.functional import BitFunctionalLinear
from bitquant.packed.linear import PackedLinear
from bitquant.packed.weights import stand_in


class PackedFunctionalLinear(PackedLinear):
    """Same arguments and, bit for bit, the same result as the ``BitFunctionalLinear`` it came from; ``weight`` is
    the stand-in of the packed parameter, or None, and is not read. ``parameter``: its path below the module that
    calls."""

    def __init__(self, *, parameter: str, device: torch.device | None = None, **shape_and_options):
        super().__init__(device=device, **shape_and_options)
        self.parameter = parameter

    @classmethod
    def from_call(cls, layer: BitFunctionalLinear, weight: Tensor) -> PackedFunctionalLinear:
        """Pack a trained call on its parameter. ValueError when a value is not finite, or a scale not
        positive."""
        weight = weight.T if layer.transposed else weight
        layer.start(weight)
        out_features, in_features = layer.shape
        packed = cls(
            parameter=layer.parameter,
            in_features=in_features,
            out_features=out_features,
            device=weight.device,
            **cls.options(layer, weight, bias=False),
        )
        packed.take(layer, weight, layer.weight_quantizer.signs(weight))
        return packed

    def spec(self) -> dict:
        return {"parameter": self.parameter, **super().spec()}

    def forward(self, input: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else bias.float()
        if self.float_path is None:
            return self.product(input, bias)
        return self.float_path(input, lambda rest: self.product(rest, bias))


def drop_parameters_(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Replace packed parameters, in place and under all their names, by stand-ins: callers still pass them on."""
    packed = {id(parameter): parameter for parameter in parameters}
    left: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if id(parameter) in packed:
                device = torch.device("cpu") if parameter.is_meta else parameter.device  # a skeleton has none yet
                del module._parameters[name]
                made = left.setdefault(id(parameter), stand_in(parameter.shape, device, parameter.dtype))
                module.__dict__[name] = made
