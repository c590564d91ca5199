"""What trainable layers with a 1-bit weight share: their quantizer, and loading a float checkpoint into them."""

from __future__ import annotations

from torch import Tensor, nn

from bitquant.config import QuantConfig
from bitquant.nn.activation import activation_quantizer
from bitquant.quantizers import ActivationQuantizer, WeightQuantizer


class QuantizedWeight(nn.Module):
    """Mixed into a layer in place. The float parameters keep their names; ``weight_quantizer.*`` is new.

    When a state_dict without quantizers is loaded, the learnable weight scale starts again from the loaded weight.
    """

    weight: Tensor
    weight_quantizer: WeightQuantizer

    def add_weight_quantizer(self, config: QuantConfig, granularity: str) -> None:
        self.weight_quantizer = WeightQuantizer(
            self.weight,
            granularity=granularity,
            learnable=config.weight_scale_learnable,
            center=config.weight_center,
            bits=config.weight_bits,
        )
        # after the children: a weight-norm weight is only known once its parametrization is loaded
        self.register_load_state_dict_post_hook(_restart_scale)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self.loaded_float = not any(key.startswith(prefix + "weight_quantizer.") for key in state_dict)


def _restart_scale(layer: QuantizedWeight, incompatible_keys) -> None:
    if layer.__dict__.pop("loaded_float", False):
        layer.weight_quantizer.reset(layer.weight)


class QuantizedLayer(QuantizedWeight):
    """A layer that multiplies a quantized input with a quantized weight; ``input_quantizer.*`` is new too."""

    input_quantizer: ActivationQuantizer

    def add_quantizers(self, config: QuantConfig, *, nonnegative: bool) -> None:
        """Called once after the class was mixed in; ``nonnegative``: the input provably never is below 0."""
        self.input_quantizer = activation_quantizer(
            config, nonnegative=nonnegative, channels=self.input_width, device=self.weight.device
        )
        self.add_weight_quantizer(config, config.weight_scale)

    @property
    def input_width(self) -> int:
        """Features or channels of the input, each with its own shift."""
        raise NotImplementedError

    def set_bits(self, config: QuantConfig) -> None:
        """Change both widths in place to the configuration's."""
        self.weight_quantizer.bits = config.weight_bits
        self.input_quantizer.set_bits(config.activation_bits)

    def spec(self) -> dict:
        """JSON-able arguments of ``add_quantizers``."""
        return {"nonnegative": self.input_quantizer.levels == "unit"}
