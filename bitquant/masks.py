"""Masks: what counts as padding in one of attention, and means of what padding leaves."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -1e4  # an additive attention mask at or below this removes the key


def is_padding_mask(mask: Tensor) -> Tensor:
    """bool scalar: an attention mask only removes keys: it is boolean, or additive with values 0 and <= -1e4 alone."""
    return torch.ones((), dtype=torch.bool) if mask.dtype == torch.bool else ((mask == 0) | (mask <= MASKED)).all()


def mean_pool(hidden: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of hidden states (batch, time, channels) over the valid tokens of a sample: (batch, channels).

    Args:
        valid: bool, broadcastable to (batch, time, channels), as ``Padding.valid`` gives it; None for all.
    """
    if valid is None:
        return hidden.mean(1)
    weights = valid.to(hidden.dtype).expand(*hidden.shape[:2], -1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
