"""Checking a rewritten module against its original, on one call and without a trace of it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils import _pytree as pytree

from . import reference
from .errors import TraceFailed
from .purity import Attributes, untouched


def trial(owner: nn.Module, forward, args, kwargs, forbid_changes: bool = False):
    """The detached result of `forward` on copies of the arguments; afterwards everything is as it was.

    Raises:
        TraceFailed: with `forbid_changes`, where forward changes attributes of its module.
    """
    attributes = Attributes(owner)
    try:
        with untouched(owner):
            call = copied((args, kwargs))
            out = forward(owner, *call[0], **call[1])
            changed = attributes.changed()
            out = pytree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, out)
    finally:
        attributes.restore()
    if changed and forbid_changes:
        raise TraceFailed(f"forward changes {changed[0]!r} of its module")
    return out


def copied(structure):
    """A copy of call arguments; anything that is neither tensor nor constant (a cache object) is copied deeply."""

    def copy_of(x):
        if isinstance(x, torch.Tensor):
            # the clone of a leaf is none, so that it may be changed in place as the original argument may
            return x.detach().requires_grad_(x.requires_grad).clone()
        return copy.deepcopy(x)

    memo = {}
    return pytree.tree_map(lambda x: memo.setdefault(id(x), copy_of(x)), structure)


def autocast_eps(device: str) -> float:
    """Rounding of the autocast dtype, 0 outside of autocast."""
    return torch.finfo(torch.get_autocast_dtype(device)).eps if torch.is_autocast_enabled(device) else 0.0


def compare(expected, got, eps: float = 0.0):
    """Raise `TraceFailed` where two results differ by more than rounding (of their dtype, or `eps` where larger)."""
    expected, got = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    if len(expected) != len(got):
        raise TraceFailed("the graph returns another number of results than the original")
    for a, b in zip(expected, got, strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        a, b = a.detach(), b.detach() if isinstance(b, torch.Tensor) else b
        if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            raise TraceFailed("the graph returns another shape or dtype than the original")
        if not a.is_floating_point():
            if not torch.equal(a, b):
                raise TraceFailed("the graph returns other integers than the original")
            continue
        tolerance = max(2000 * torch.finfo(a.dtype).eps, 16 * eps)
        a, b = a.double(), b.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            raise TraceFailed("the graph returns other infinities or NaNs than the original")
        a, b = a.nan_to_num(), b.nan_to_num()
        error = ((a - b).abs().max() / (1 + a.abs().max())).item() if a.numel() else 0.0
        if not error <= tolerance:
            raise TraceFailed(f"the graph differs from the original by {error:.1e}")


def check_attention(chain, undropped, weights, operands, eps, attn_mask=None, dropout_p=0.0, scale=None):
    """Raise `TraceFailed` where one call of attention is not what its chain of functions computes, dropout aside.

    Rows without any key are 0 for the one and undefined or a mean for the other: they are not compared.
    """
    if undropped is weights and dropout_p:  # dropped out in place
        return
    query, key, value = operands
    expected = chain.times(undropped, value)
    got = reference.attention(query, key, value, attn_mask=attn_mask, scale=scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        empty = attn_mask.any(dim=-1, keepdim=True).logical_not()
        expected, got = expected.masked_fill(empty, 0.0), got.masked_fill(empty, 0.0)
    compare(expected, got, eps)
