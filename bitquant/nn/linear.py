"""BitLinear: a trainable linear layer whose weight and input are 1 bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant.config import QuantConfig
from bitquant.quantizers import ActivationQuantizer, WeightQuantizer


def scaled(product: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``fl(fl(product * scale) + bias)``: the one place where scales meet an integer product (DESIGN contract 1)."""
    out = product * scale
    return out if bias is None else out + bias.float()


def exact(x: Tensor) -> torch.autocast:
    """Context in which products of levels are exact: autocast off, since bf16 sums are exact only up to 256."""
    return torch.autocast(x.device.type, enabled=False)


class WeightLoading(nn.Module):
    """Loading a float checkpoint into a student: the learnable weight scale starts again from the loaded weight."""

    weight_quantizer: WeightQuantizer
    weight: Tensor

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if not any(key.startswith(prefix + "weight_quantizer.") for key in state_dict):
            self.weight_quantizer.reset(self.weight)


class BitLinear(WeightLoading):
    """Mixed into ``nn.Linear`` (or a subclass) in place: ``(levels(x) @ levels(W).T) * (alpha * s) + bias``.

    x (..., in_features) of any float dtype -> (..., out_features) of the same dtype. The levels are multiplied
    exactly in fp32 (sums of +-1 are exact up to 2^24). The parameter names of the float layer are kept; new keys are
    ``input_quantizer.*`` and ``weight_quantizer.*``.
    """

    input_quantizer: ActivationQuantizer

    def add_quantizers(self, config: QuantConfig, *, nonnegative: bool) -> None:
        """Called once after the class was mixed in; ``nonnegative``: the input provably never is below 0."""
        device = self.weight.device
        levels = "unit" if nonnegative else "signed"
        init = 4.0 if nonnegative else config.signed_init
        self.input_quantizer = ActivationQuantizer(
            levels,
            self.weight.shape[1],
            bits=config.activation_bits,
            smooth=config.ste == "smooth",
            init=init,
            device=device,
        )
        self.weight_quantizer = WeightQuantizer(
            self.weight,
            granularity=config.weight_scale,
            learnable=config.weight_scale_learnable,
            center=config.weight_center,
            bits=config.weight_bits,
        )

    def set_bits(self, config: QuantConfig) -> None:
        """Change both widths in place to the configuration's."""
        self.weight_quantizer.bits = config.weight_bits
        self.input_quantizer.set_bits(config.activation_bits)

    def spec(self) -> dict:
        """JSON-able arguments of ``add_quantizers``."""
        return {"nonnegative": self.input_quantizer.levels == "unit"}

    def forward(self, x: Tensor) -> Tensor:
        with exact(x):
            levels, alpha = self.input_quantizer(x)
            weight, scale = self.weight_quantizer(self.weight)
            return scaled(F.linear(levels, weight), alpha * scale, self.bias).to(x.dtype)
