"""The trainable 1-bit form of a contraction: whether it has one, and making it."""

from __future__ import annotations

import torch
from torch import nn

from bitquant.capture import Site, mutate_class_
from bitquant.config import QuantConfig
from bitquant.nn import BitAttention, BitConv, BitEinsum, BitEmbedding, BitFunctionalLinear, BitLinear, BitMatmul
from bitquant.nn.conv import is_pointwise
from bitquant.nn.low_rank import LowRank
from bitquant.nn.weights import check_own_weight

_LAYERS = {
    "linear": (nn.Linear, BitLinear),
    "conv1d": (nn.Conv1d, BitConv),
    "conv2d": (nn.Conv2d, BitConv),
    "embedding": (nn.Embedding, BitEmbedding),
}


def has_form(model: nn.Module, site: Site) -> bool:
    """Whether a contraction of ``model``, as it is used there, has a 1-bit form."""
    if site.traced == "module":
        layer, _ = _LAYERS.get(site.kind, (None, None))
        module = model.get_submodule(site.path)
        return layer is not None and isinstance(module, layer) and getattr(module, "max_norm", None) is None
    if site.by_parameter:
        return site.by_matrix
    return site.kind in ("attention", "matmul") or (site.kind == "einsum" and len(site.shapes) == 2)


def quantize_layer_(module: nn.Module, site: Site, config: QuantConfig) -> None:
    """Mutate the layer that a site with a form stands for. ValueError: a hook makes its weight."""
    try:
        check_own_weight(module)
    except ValueError as error:
        raise ValueError(f"{site.path}: {error}") from None
    mutate_class_(module, _LAYERS[site.kind][1])
    if site.kind == "embedding":
        module.add_quantizers(config)
    else:
        module.add_quantizers(config, nonnegative=site.nonnegative[0])


def float_path(model: nn.Module, site: Site, config: QuantConfig) -> LowRank | None:
    """What the 1-bit form of a contraction gets beside it, without values; None for nothing."""
    if site.traced != "module":
        shape = _weight_shape(site) if site.by_parameter else None
    elif site.kind == "linear" or ("conv" in site.kind and is_pointwise(model.get_submodule(site.path))):
        shape = model.get_submodule(site.path).weight.shape[:2]
    else:
        shape = None
    return LowRank.beside(shape, config.low_rank, torch.device("meta")) if shape else None


def quantized_product(model: nn.Module, site: Site, config: QuantConfig) -> nn.Module:
    """The trainable child for a product that has a form."""
    device = next((p.device for p in model.parameters()), None)
    sides = tuple(site.nonnegative[:2])
    if site.kind == "attention":
        return BitAttention(config, site.shapes[0][-1], score_bias=site.score_bias, device=device)
    if site.by_parameter:
        return _functional_linear(model, site, config, device)
    if site.kind == "matmul":
        return BitMatmul(config, nonnegative=sides, probability=site.role == "pv" and sides[0], device=device)
    return BitEinsum(config, nonnegative=sides, device=device)


def _functional_linear(model: nn.Module, site: Site, config: QuantConfig, device: torch.device | None) -> nn.Module:
    """For a product with a whole matrix parameter of the owner."""
    parameter, owner = model.get_parameter(site.parameters[1]), model.get_submodule(site.owner)
    matmul = site.kind == "matmul"
    transposed = matmul != (site.form == "transposed")
    child = BitFunctionalLinear(
        config,
        shape=_weight_shape(site),
        parameter=next(name for name, p in owner.named_parameters() if p is parameter),
        transposed=transposed,
        matmul=matmul,
        nonnegative=site.nonnegative[0],
        device=device,
    )
    child.start(parameter.T if transposed else parameter)
    return child


def _weight_shape(site: Site) -> tuple[int, int]:
    """(out_features, in_features) of a product with a matrix parameter."""
    return site.shapes[1][::-1] if site.kind == "matmul" else site.shapes[1]
