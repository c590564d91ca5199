"""Masks: what counts as padding in one of attention, masks of inputs read at the frames of hidden states, and means of
what they leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASKED = -1e4  # an additive attention mask at or below this removes the key


def is_padding_mask(mask: Tensor) -> Tensor:
    """bool scalar: an attention mask only removes keys: it is boolean, or additive with values 0 and <= -1e4 alone."""
    return torch.ones((), dtype=torch.bool) if mask.dtype == torch.bool else ((mask == 0) | (mask <= MASKED)).all()


def mask_for(mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """A padding mask (batch, samples) for hidden states of a shape (batch, frames, ...).

    Where the model has its own number of frames, each takes the mask's value at its place in time. None without a
    mask, or where the batch differs.
    """
    if mask is None or len(shape) < 2 or mask.shape[0] != shape[0] or shape[1] == 0:
        return None
    if mask.shape[1] == shape[1]:
        return mask
    if mask.shape[1] < shape[1]:
        return None
    places = (torch.arange(shape[1], device=mask.device) * 2 + 1) * mask.shape[1] // (2 * shape[1])
    return mask[:, places]


def valid_tokens(z: Tensor, valid: Tensor | None) -> Tensor:
    """The elements of z, (batch, time, channels) or (batch, heads, time, channels), at valid (batch, time) tokens; a
    mask of more samples than z has frames is read at the frames' places. z itself without a mask."""
    tokens = z.transpose(1, 2) if z.ndim == 4 else z
    mask = mask_for(valid, tokens.shape) if tokens.ndim >= 3 else None
    return z if mask is None else tokens[mask]


def mean_pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of hidden states (batch, time, channels) over the valid tokens of a padding mask: (batch, channels)."""
    mask = mask_for(mask, hidden.shape)
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
