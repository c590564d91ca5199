"""``convert_``: a trained student becomes a packed model, in place; no float copy of a packed weight remains."""

from __future__ import annotations

from torch import nn

from bitquant.coverage import record_of
from bitquant.nn import BitAttention, BitEmbedding, BitLinear
from bitquant.packed import PackedAttention, PackedEmbedding, PackedLinear
from bitquant.packed.structure import replace_everywhere_


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
            if isinstance(module, (BitLinear, BitEmbedding)) and module.weight_quantizer.bits != 1:
                continue
            if isinstance(module, BitLinear):
                packed[module] = PackedLinear.from_trained(module)
            elif isinstance(module, BitEmbedding):
                packed[module] = PackedEmbedding.from_trained(module)
            elif isinstance(module, BitAttention) and module.in_integers:
                packed[module] = PackedAttention.from_trained(module)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not packed:
        raise ValueError("this model has no layer left to pack; it was converted already")
    for module, replacement in packed.items():
        replace_everywhere_(model, module, replacement)
    model.eval().requires_grad_(False)
