"""Two attention masks as one: boolean (True = keep) or additive."""

from __future__ import annotations

import math

import torch


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
