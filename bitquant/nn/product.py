"""Binary products of two activations outside the attention pattern: matmul and einsum around the model's own floats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant.config import QuantConfig
from bitquant.nn.activation import activation_quantizer
from bitquant.nn.exact import exact, scaled
from bitquant.nn.selection import at_bits, selection


class BitMatmul(nn.Module):
    """``torch.matmul(a, b)`` of two activations, each with its own scale: (..., n, d) @ (..., d, m) -> (..., n, m).

    Used where the attention pattern is broken by a float bias on the scores. A left operand that is a softmax
    (``probability``) is binarized by the attention rule of the configuration, row by row.
    """

    def __init__(
        self,
        config: QuantConfig,
        *,
        nonnegative: tuple[bool, bool] = (False, False),
        probability: bool = False,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.nonnegative, self.probability = nonnegative, probability
        self.left = (
            selection(config, device=device)
            if probability
            else activation_quantizer(config, nonnegative=nonnegative[0], device=device)
        )
        self.right = activation_quantizer(config, nonnegative=nonnegative[1], device=device)

    def set_bits(self, config: QuantConfig) -> None:
        """Change the width in place to the configuration's."""
        self.right.set_bits(config.activation_bits)
        if self.probability:
            self.left = at_bits(self.left, config)
        else:
            self.left.set_bits(config.activation_bits)

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton, beside the configuration."""
        return {"nonnegative": list(self.nonnegative), "probability": self.probability}

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with exact(a):
            right, alpha_right = self.right(b)
            if self.probability:
                chosen = self.left.from_probability(a.float(), None, 0.0)
                return scaled(chosen.mix(right), chosen.factor * alpha_right).to(a.dtype)
            left, alpha_left = self.left(a)
            return scaled(torch.matmul(left, right), alpha_left * alpha_right).to(a.dtype)


class BitEinsum(nn.Module):
    """``torch.einsum(equation, a, b)`` of two activations, each with its own scale."""

    def __init__(
        self,
        config: QuantConfig,
        *,
        nonnegative: tuple[bool, bool] = (False, False),
        device: torch.device | None = None,
    ):
        super().__init__()
        self.nonnegative = nonnegative
        self.left, self.right = (
            activation_quantizer(config, nonnegative=positive, device=device) for positive in nonnegative
        )

    def set_bits(self, config: QuantConfig) -> None:
        """Change the width in place to the configuration's."""
        for operand in (self.left, self.right):
            operand.set_bits(config.activation_bits)

    def spec(self) -> dict:
        """JSON-able arguments that build this layer's skeleton, beside the configuration."""
        return {"nonnegative": list(self.nonnegative)}

    def forward(self, equation: str, *operands: Tensor) -> Tensor:
        a, b = operands[0] if len(operands) == 1 else operands
        with exact(a):
            (left, alpha_left), (right, alpha_right) = self.left(a), self.right(b)
            return scaled(torch.einsum(equation, left, right), alpha_left * alpha_right).to(a.dtype)
