"""BitFunctionalLinear: a product with a parameter of the caller: ``F.linear``, ``x @ w``, ``addmm``."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant.config import QuantConfig
from bitquant.nn.activation import activation_quantizer
from bitquant.nn.exact import exact, scaled
from bitquant.nn.low_rank import LowRank
from bitquant.nn.training import level_product
from bitquant.nn.weights import BEGIN_AT_WEIGHT, begin, not_begun
from bitquant.quantizers import OptionalState, WeightQuantizer


class BitFunctionalLinear(OptionalState):
    """Stands in for one ``F.linear(input, weight, bias)`` or ``input @ weight`` of the module that calls, whose weight
    is a whole matrix parameter, or its transpose.

    The parameter stays where it is, under its name; only the quantizers live here.

    Args:
        shape: (out_features, in_features) of the weight.
        parameter: path of the weight below the module that calls.
        transposed: the parameter itself is (in_features, out_features).
        matmul: the weight comes as (in_features, out_features).
        nonnegative: the input provably never is below 0.
    """

    def __init__(
        self,
        config: QuantConfig,
        *,
        shape: tuple[int, int],
        parameter: str,
        transposed: bool = False,
        matmul: bool = False,
        nonnegative: bool = False,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.shape, self.parameter, self.transposed, self.matmul = tuple(shape), parameter, transposed, matmul
        self.float_path = LowRank.beside(self.shape, config.low_rank, device)
        # what a path leaves of an input has both signs
        self.input_quantizer = activation_quantizer(
            config, nonnegative=nonnegative and self.float_path is None, channels=shape[1], device=device
        )
        self.weight_quantizer = WeightQuantizer(
            torch.zeros(self.shape, dtype=torch.float32, device=device),
            granularity=config.weight_scale,
            learnable=config.weight_scale_learnable,
            center=config.weight_center,
            bits=config.weight_bits,
        )
        self.unbegun = set(BEGIN_AT_WEIGHT)  # until the first call brings the weight

    def start(self, weight: Tensor) -> None:
        """Start what begins at the weight, once, and again after a checkpoint without it was loaded."""
        begin(self, self.unbegun, weight)
        self.unbegun = set()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        # torch shows a module no keys but its own: whether another weight was loaded cannot be seen
        self.unbegun = not_begun(state_dict, prefix)

    def set_bits(self, config: QuantConfig) -> None:
        """Change both widths in place to the configuration's."""
        self.weight_quantizer.bits = config.weight_bits
        self.input_quantizer.set_bits(config.activation_bits)

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton, beside the configuration."""
        levels = self.input_quantizer.levels
        return {
            "shape": list(self.shape),
            "parameter": self.parameter,
            "transposed": self.transposed,
            "matmul": self.matmul,
            "nonnegative": levels == "unit",
        }

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = weight.T if self.matmul else weight
        with exact(input):
            self.start(weight)
            if self.float_path is None:
                return self._product(input, weight, bias).to(input.dtype)
        return self.float_path(input, lambda rest: self._product(rest, weight, bias), lambda: weight)

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        levels, alpha = self.input_quantizer(input)
        signs, scale = self.weight_quantizer(weight)
        product = level_product(levels, signs, inputs=self.input_quantizer, weights=self.weight_quantizer)
        return scaled(product, alpha * scale, bias)
