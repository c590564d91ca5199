"""``convert_``: a trained student becomes a packed model, in place; no float copy of a packed weight remains."""

from __future__ import annotations

from torch import nn

from bitquant.coverage import record_of
from bitquant.nn import BitAttention, BitConv, BitEmbedding, BitLinear
from bitquant.nn.weights import QuantizedWeight
from bitquant.packed import PackedAttention, PackedConv, PackedEmbedding, PackedLinear
from bitquant.packed.structure import replace_everywhere_

PACKED = {BitLinear: PackedLinear, BitConv: PackedConv, BitEmbedding: PackedEmbedding}


def convert_(model: nn.Module) -> None:
    """Pack every trained 1-bit layer, in place, and put the model in eval mode without gradients.

    The packed model gives, bit for bit, what the student gave in eval mode. Products around a float softmax hold no
    weights and stay as they are.

    Raises:
        ValueError: the model was not quantized, is packed already, or holds a scale that is not positive.
    """
    record_of(model)
    packed = {}
    for path, module in model.named_modules():
        try:
            if (replacement := _packed(module)) is not None:
                packed[module] = replacement
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not packed:
        raise ValueError("this model has no layer left to pack; it was converted already")
    for module, replacement in packed.items():
        replace_everywhere_(model, module, replacement)
    model.eval().requires_grad_(False)


def _packed(module: nn.Module) -> nn.Module | None:
    """The packed form of a trained layer; None for anything else, and for float weights and float softmaxes."""
    if isinstance(module, QuantizedWeight) and module.weight_quantizer.bits == 1:
        return next(packed for kind, packed in PACKED.items() if isinstance(module, kind)).from_trained(module)
    if isinstance(module, BitAttention) and module.in_integers:
        return PackedAttention.from_trained(module)
    return None
