"""What trainable layers with a 1-bit weight share: their quantizer, and loading a float checkpoint into them."""

from __future__ import annotations

from torch import Tensor, nn

from bitquant.config import QuantConfig
from bitquant.nn.activation import activation_quantizer
from bitquant.nn.exact import exact
from bitquant.nn.low_rank import LowRank
from bitquant.quantizers import ActivationQuantizer, WeightQuantizer

BEGIN_AT_WEIGHT = ("weight_quantizer", "float_path")


class QuantizedWeight(nn.Module):
    """Mixed into a layer in place. The float parameters keep their names; ``weight_quantizer.*`` is new.

    When a weight is loaded from a state_dict without what begins at it, the learnable weight scale and a float path,
    that starts again from the loaded weight.
    """

    weight: Tensor
    weight_quantizer: WeightQuantizer

    def add_weight_quantizer(self, config: QuantConfig, granularity: str, bits: int) -> None:
        self.weight_quantizer = WeightQuantizer(
            self.weight,
            granularity=granularity,
            learnable=config.weight_scale_learnable,
            center=config.weight_center,
            bits=bits,
        )
        # after the children: a weight-norm weight is only known once its parametrization is loaded
        self.register_load_state_dict_post_hook(_restart)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        held = (prefix + "weight", prefix + "parametrizations.weight")
        loaded = any(key.startswith(held) for key in state_dict)
        self.unbegun = not_begun(state_dict, prefix) if loaded else set()


def check_own_weight(layer: nn.Module) -> None:
    """ValueError where a hook makes the weight or bias anew at each call: nobody else would see what was trained."""
    for name in ("weight", "bias"):
        if name in vars(layer):
            raise ValueError(
                f"its {name} is made by a hook, as torch.nn.utils.weight_norm, spectral_norm and prune do: make it "
                "permanent (remove_weight_norm, remove_spectral_norm, prune.remove) or use "
                "torch.nn.utils.parametrizations, which train along"
            )


def not_begun(state_dict: dict[str, Tensor], prefix: str) -> set[str]:
    """What begins at a layer's weight and is not in a state_dict."""
    return {name for name in BEGIN_AT_WEIGHT if not any(key.startswith(f"{prefix}{name}.") for key in state_dict)}


def begin(layer: nn.Module, names: set[str], weight: Tensor) -> None:
    """Start again at a weight what the layer has of ``names``, of ``BEGIN_AT_WEIGHT``."""
    for name in names:
        if (part := getattr(layer, name, None)) is not None:
            part.reset(weight)


def _restart(layer: QuantizedWeight, incompatible_keys) -> None:
    if names := layer.__dict__.pop("unbegun", None):
        training = [module for module in layer.modules() if module.training]
        layer.eval()  # some parametrizations take a step each time they are read in training mode
        begin(layer, names, layer.weight)
        for module in training:
            module.training = True


class QuantizedLayer(QuantizedWeight):
    """A layer that multiplies a quantized input with a quantized weight; ``input_quantizer.*`` is new too, and
    ``float_path.*`` where the configuration asks for a float path."""

    input_quantizer: ActivationQuantizer
    float_path: LowRank | None
    channel_dim = -1  # of the input and the output

    def add_quantizers(self, config: QuantConfig, *, nonnegative: bool) -> None:
        """Called once after the class was mixed in; ``nonnegative``: the input provably never is below 0."""
        device = self.weight.device
        path = LowRank.beside(self.weight.shape[:2], config.low_rank, device) if self.pointwise else None
        self.register_module("float_path", path)
        # what a path leaves of an input has both signs
        self.input_quantizer = activation_quantizer(
            config, nonnegative=nonnegative and path is None, channels=self.input_width, device=device
        )
        self.add_weight_quantizer(config, config.weight_scale, config.weight_bits)
        if path is not None:
            path.reset(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.float_path is None:
            with exact(x):
                return self.product(x).to(x.dtype)
        return self.float_path(x, self.product, self._matrix, self.channel_dim)

    def _matrix(self) -> Tensor:
        return self.weight.flatten(1)

    def product(self, x: Tensor) -> Tensor:
        """fp32: the quantized input times the quantized weight, scaled."""
        raise NotImplementedError

    @property
    def pointwise(self) -> bool:
        """Whether each output is a linear function of one input vector."""
        return True

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
