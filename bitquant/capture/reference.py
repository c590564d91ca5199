"""What each kind of child computes, in float: used to check a rewritten module before it is trusted."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """`scaled_dot_product_attention` written out; a fully masked row gives 0, dropout is not applied."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    if is_causal:
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(ones.triu(1), float("-inf"))
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(attn_mask.logical_not(), float("-inf")) if is_bool else scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights.masked_fill(scores == float("-inf"), 0.0), value)


FLOAT = {
    "attention": F.scaled_dot_product_attention,
    "matmul": torch.matmul,
    "einsum": torch.einsum,
    "linear_fn": F.linear,
    "conv1d_fn": F.conv1d,
    "conv2d_fn": F.conv2d,
    "conv3d_fn": F.conv3d,
}


def kind_of(name: str) -> str:
    """The kind in a child's name: "linear_fn" for "bit_linear_fn_0"."""
    return name.removeprefix("bit_").rpartition("_")[0]


def child_kind(name: str) -> str | None:
    """The kind in a name, None for one that no product has: the form is that of `Interceptor.next_name`."""
    kind, count = kind_of(name), name.rpartition("_")[2]
    number = count.isascii() and count.isdigit() and len(count) < 10
    return kind if number and kind in FLOAT and name == f"bit_{kind}_{int(count)}" else None
