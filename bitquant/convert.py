"""``convert_``: a trained student becomes a packed model, in place; no float copy of a packed weight remains."""

from __future__ import annotations

import torch
from torch import nn

from bitquant.coverage import is_packed
from bitquant.nn import BitAttention, BitConv, BitEmbedding, BitFunctionalLinear, BitLinear
from bitquant.nn.weights import QuantizedWeight, check_own_weight
from bitquant.packed import PackedAttention, PackedConv, PackedEmbedding, PackedFunctionalLinear, PackedLinear
from bitquant.packed.cast import guard_casts_
from bitquant.packed.functional import drop_parameters_
from bitquant.packed.structure import replace_everywhere_
from bitquant.quantizers import FLOAT_BITS
from bitquant.record import record_of
from bitquant.widths import widths_of

PACKED = {BitLinear: PackedLinear, BitConv: PackedConv, BitEmbedding: PackedEmbedding}


@torch.inference_mode(False)
def convert_(model: nn.Module) -> None:
    """Pack every trained 1-bit layer, in place, and put the model in eval mode.

    The packed model gives, bit for bit, what the student gave in eval mode. Products around a float softmax hold no
    weights and stay as they are. So does ``requires_grad`` of what stays float, by which torch rounds: run the model
    under ``torch.inference_mode()`` or ``torch.no_grad()``.

    Raises:
        ValueError: the model was not quantized, is packed already, or holds a weight that is NaN or infinite or a scale
            that is not positive.
    """
    record_of(model)
    training = [module for module in model.modules() if module.training]
    model.eval()  # a parametrized weight may change each time it is read in training mode
    try:
        packed = _all_packed(model)
    except ValueError:
        for module in training:
            module.training = True
        raise
    used = {path: _parameter(model, path, module) for path, module in model.named_modules() if _is_weighted(module)}
    kept = {id(parameter) for path, parameter in used.items() if path not in packed}
    for module, replacement in packed.values():
        replace_everywhere_(model, module, replacement)
    drop_parameters_(model, [parameter for parameter in used.values() if id(parameter) not in kept])
    guard_casts_(model)
    model.eval()


def _all_packed(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Every layer with 1-bit weights, and its packed form, by path."""
    packed = {}
    for path, module in model.named_modules():
        try:
            if (replacement := _packed(model, path, module)) is not None:
                packed[path] = module, replacement
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if packed:
        return packed
    if is_packed(model):
        raise ValueError("this model has no layer left to pack; it was converted already")
    raise ValueError(f"there is nothing to pack in this {widths_of(model)} student: no layer has 1-bit weights")


def _packed(model: nn.Module, path: str, module: nn.Module) -> nn.Module | None:
    """The packed form of a trained layer; None for anything else, and for float weights and float softmaxes."""
    if isinstance(module, BitAttention):
        return PackedAttention.from_trained(module) if module.in_integers else None
    if not _is_weighted(module) or module.weight_quantizer.bits == FLOAT_BITS:
        return None
    if isinstance(module, BitFunctionalLinear):
        return PackedFunctionalLinear.from_call(module, _parameter(model, path, module))
    check_own_weight(module)
    return next(packed for kind, packed in PACKED.items() if isinstance(module, kind)).from_trained(module)


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, (BitFunctionalLinear, QuantizedWeight))


def _parameter(model: nn.Module, path: str, module: nn.Module) -> nn.Parameter | None:
    """The parameter that the layer at ``path`` multiplies by, which may have other names; None where it is computed."""
    if isinstance(module, BitFunctionalLinear):
        return model.get_submodule(path.rpartition(".")[0]).get_parameter(module.parameter)
    return module._parameters.get("weight")
