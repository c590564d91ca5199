"""What the numbers of quantizers and packed layers must be for the integers that are made of them to be right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant.nn.low_rank import LowRank
from bitquant.ops.rules import RATIO_BITS, TABLE_BITS
from bitquant.packed.attention import PackedAttention
from bitquant.packed.embedding import PackedEmbedding
from bitquant.packed.weights import PackedLayer
from bitquant.quantizers import ActivationQuantizer, WeightQuantizer

_MARGIN = 2**30  # as ``row_max_margin`` clamps it
_FINITE, _POSITIVE = "finite", "positive and finite"
# what the tensors of a module may hold: a word, or (lowest, highest)
_VALUES = {
    PackedLayer: {"scale": _POSITIVE, "step": _POSITIVE, "offset": _FINITE, "bias": _FINITE},
    PackedEmbedding: {"scale": _POSITIVE},
    PackedAttention: {
        "scale": _POSITIVE,
        "margin": (0, _MARGIN),
        "table": (0, 2**TABLE_BITS),
        "ratio": (0, 2 ** (RATIO_BITS + 1)),
    },
    LowRank: {"down": _FINITE, "up": _FINITE},
    ActivationQuantizer: {"alpha": _FINITE, "shift": _FINITE, "observed": _FINITE},
    WeightQuantizer: {"scale_init": _POSITIVE, "log_ratio": _FINITE},
}


def check_values(model: nn.Module) -> None:
    """ValueError naming the first tensor of a student or a packed model whose values no quantizer makes."""
    for path, module in model.named_modules():
        for kind, tensors in _VALUES.items():
            if isinstance(module, kind):
                for name, wanted in tensors.items():
                    tensor = getattr(module, name, None)
                    if tensor is not None and not _holds(tensor.detach(), wanted):
                        words = wanted if isinstance(wanted, str) else f"from {wanted[0]} to {wanted[1]}"
                        raise ValueError(f"{path}.{name} holds a value that is not {words}")


def _holds(tensor: Tensor, wanted: str | tuple[int, int]) -> bool:
    low, high = torch.aminmax(tensor) if tensor.numel() else (torch.ones(()), torch.ones(()))  # NaN is in both
    low, high = low.item(), high.item()
    if wanted == _FINITE:
        return float("-inf") < low and high < float("inf")
    if wanted == _POSITIVE:
        return low > 0 and high < float("inf")
    return wanted[0] <= low and high <= wanted[1]
