"""PackedFunctionalLinear: ``F.linear`` with a parameter that now exists only as bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant.nn.functional import BitFunctionalLinear
from bitquant.packed.linear import PackedLinear
from bitquant.packed.weights import stand_in


class PackedFunctionalLinear(PackedLinear):
    """Same arguments and, bit for bit, the same result as the ``BitFunctionalLinear`` it came from; ``weight`` is
    the stand-in of the packed parameter and is not read. ``parameter``: its path below the module that calls."""

    def __init__(self, *, parameter: str, device: torch.device | None = None, **shape_and_options):
        super().__init__(device=device, **shape_and_options)
        self.parameter = parameter

    @classmethod
    def from_call(cls, layer: BitFunctionalLinear, weight: Tensor) -> PackedFunctionalLinear:
        """Pack a trained call on its weight. ValueError when a scale is not positive and finite."""
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

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.product(input, None if bias is None else bias.float())


def drop_parameter_(owner: nn.Module, parameter: str) -> None:
    """Replace a packed parameter, in place, by a stand-in without storage: callers still pass it on by name."""
    path, _, name = parameter.rpartition(".")
    module = owner.get_submodule(path)
    weight = module._parameters.pop(name)
    device = torch.device("cpu") if weight.is_meta else weight.device  # a skeleton has no device yet
    module.__dict__[name] = stand_in(weight.shape, device, weight.dtype)
