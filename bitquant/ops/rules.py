"""The rules by which binary attention takes keys, in integers: shared by training and by every backend's definition.

Scores are sums of +-1 products, so they are exact integers whatever the order of summation; a decision that compares
integers only is equal everywhere (contract 4).
"""

import math

import torch
from torch import Tensor

TABLE_BITS = 12  # fraction bits of the exponentials
RATIO_BITS = 24  # fraction bits of alpha / 2


def row_max_margin(temperature: Tensor, share: float) -> Tensor:
    """int64 scalar ``floor(ln(1 / share) / c)``: a key this far below the best score still has ``share`` of its
    softmax weight. ``temperature`` c is fp32, positive."""
    margin = torch.floor(math.log(1 / share) / temperature.double())
    return margin.clamp(max=2.0**30).to(torch.int64)


def taken_by_row_max(scores: Tensor, keep: Tensor | None, margin: Tensor) -> Tensor:
    """scores integers (as float or int) (..., Tq, Tk), keep bool broadcastable or None -> bool (..., Tq, Tk): the kept
    keys with ``s_ij >= max_j s_ij - margin``."""
    best = _best_kept(scores, keep)
    # no distance between two scores exceeds 2 d < 2^24, and a clamped margin is exact in fp32
    taken = scores >= best - margin.clamp(max=1 << 24).to(scores.dtype)
    return taken if keep is None else taken & keep


def softmax_table(temperature: Tensor, head_dim: int) -> Tensor:
    """int64 [head_dim + 1] ``rint(2^12 exp(-2 c m))``: the softmax numerator of a key ``2 m`` below the row's best.

    Relative to the row's own best score, so it never underflows as a whole.
    """
    below = torch.arange(head_dim + 1, dtype=torch.float64, device=temperature.device)
    return torch.round(torch.exp(-2 * temperature.double() * below) * 2**TABLE_BITS).to(torch.int64)


def threshold_ratio(alpha: Tensor) -> Tensor:
    """int64 scalar: ``alpha / 2`` in units of 2^-24 (probabilities never exceed 1, so neither need it)."""
    return torch.round(alpha.double().clamp(max=4.0) * 2 ** (RATIO_BITS - 1)).to(torch.int64)


def taken_by_table(scores: Tensor, keep: Tensor | None, table: Tensor, ratio: Tensor) -> Tensor:
    """scores integers (..., Tq, Tk) -> bool: the kept keys whose share of the row's table sum exceeds ``ratio``."""
    below = ((_best_kept(scores, keep) - scores) / 2).to(torch.int64).clamp(min=0)
    weight = table[below]
    if keep is not None:
        weight = weight * keep
    total = weight.sum(-1, keepdim=True)
    # from 1.0 on nothing is taken, as no weight exceeds the sum; the clamp keeps the product inside int64
    return weight << RATIO_BITS > ratio.clamp(max=1 << RATIO_BITS) * total


def _best_kept(scores: Tensor, keep: Tensor | None) -> Tensor:
    kept = scores if keep is None else scores.masked_fill(~keep, -(2.0**30))
    return kept.amax(-1, keepdim=True) if scores.shape[-1] else kept.new_zeros(*scores.shape[:-1], 1)
