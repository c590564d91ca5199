"""Attention masks: boolean (True = keep) or additive."""

from __future__ import annotations

import math

import torch

MASKED = -1e4  # additive values at or below this, and fills, take a key out


def is_padding_mask(mask) -> bool:
    """Whether a mask only takes keys out: boolean, or additive with values 0 and <= -1e4 alone."""
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask <= MASKED)).all())


def merge_masks(first, second):
    """Both masks at once: boolean where both are, else additive. None is no mask."""
    if first is None or second is None:
        return second if first is None else first
    if first.dtype == torch.bool and second.dtype == torch.bool:
        return first.logical_and(second)
    if second.dtype == torch.bool:
        first, second = second, first
    if first.dtype == torch.bool:
        return second.masked_fill(first.logical_not(), -math.inf)
    return first + second
