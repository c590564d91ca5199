"""Attention masks as what binary attention needs: one boolean mask of the keys that may be taken."""

import torch
from torch import Tensor

from bitquant.masks import MASKED, is_padding_mask

MASK_MESSAGE = (
    "binary attention takes a boolean mask or an additive one whose values are 0 or <= -1e4; this mask holds other "
    "values: give example_inputs that carry such a mask to quantize_, so that the float bias is kept"
)


def keep_mask(
    mask: Tensor | None, is_causal: bool, queries: int, keys: int, *, device: torch.device, score_bias: bool = False
) -> Tensor | None:
    """bool, broadcastable to scores (..., queries, keys): True where the key may be taken; None when all may.

    Args:
        mask: as in ``scaled_dot_product_attention``: bool (True = take) or additive float.
        score_bias: a float mask may carry any bias; otherwise other values than 0 and <= -1e4 raise.
    """
    keep = mask
    if mask is not None and mask.dtype != torch.bool:
        if not score_bias:
            torch._assert_async(is_padding_mask(mask), MASK_MESSAGE)
        keep = mask > MASKED
    if is_causal:
        causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        keep = causal if keep is None else keep & causal
    return keep


def masked_softmax(logits: Tensor, keep: Tensor | None) -> Tensor:
    """Softmax over the kept keys, same shape. A finite fill keeps a fully masked row, whose keys are never taken,
    free of NaN."""
    if keep is not None:
        logits = logits.masked_fill(~keep, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)
