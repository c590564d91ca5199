"""Compound functions in terms of the products that stand for them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .masks import merge_masks


def _add_product(input, first, second, *, beta=1, alpha=1):
    """`addmm` and `baddbmm`: beta * input + alpha * (first @ second)."""
    product = torch.matmul(first, second)
    if alpha != 1:
        product = product * alpha
    if beta == 0:  # as documented by torch: input is ignored, NaN included
        return product
    # under autocast the product alone decides the dtype
    return product + (input if beta == 1 else input * beta).to(product.dtype)


def _plan_einsum(equation: str, ndims: tuple[int, int]):
    """Axis orders that turn a two-operand einsum into one matmul, or None where it is not one.

    Returns (order of a to (batch, m, k), order of b to (batch, k, n), order of the product to the output).
    """
    equation = equation.replace(" ", "")
    if equation.count(",") != 1 or "->" not in equation:
        return None
    operands, output = equation.split("->")
    first, second = operands.split(",")
    if "." in equation:
        if not (first.count("...") == second.count("...") == output.count("...") == 1):
            return None
        extra = ndims[0] - len(first.replace("...", ""))
        if extra != ndims[1] - len(second.replace("...", "")):
            return None
        names = "".join(chr(0x100 + i) for i in range(extra))  # letters no equation uses
        first, second, output = (term.replace("...", names) for term in (first, second, output))
    if any(len(set(term)) != len(term) for term in (first, second, output)):
        return None
    a, b, out = set(first), set(second), set(output)
    batch = [c for c in output if c in a & b]
    rows, columns, summed = a - b, b - a, (a & b) - out
    if not (len(rows) == len(columns) == len(summed) == 1) or out != set(batch) | rows | columns:
        return None
    row, column, inner = rows.pop(), columns.pop(), summed.pop()
    product = [*batch, row, column]
    return (
        [first.index(c) for c in (*batch, row, inner)],
        [second.index(c) for c in (*batch, inner, column)],
        [product.index(c) for c in output],
    )


def _permute(x, order):
    return x if order == sorted(order) else x.permute(order)


def _einsum(equation, *operands):
    if len(operands) == 1:
        operands = operands[0]
    to_first, to_second, to_output = _plan_einsum(equation, tuple(x.ndim for x in operands))
    return _permute(torch.matmul(_permute(operands[0], to_first), _permute(operands[1], to_second)), to_output)


def _keep(mask):
    """A mask of `multi_head_attention_forward` (True = drop) as one of SDPA (True = keep); additive ones stay."""
    return mask.logical_not() if mask.dtype == torch.bool else mask


def _multi_head_attention(
    query,
    key,
    value,
    embed_dim_to_check,
    num_heads,
    in_proj_weight,
    in_proj_bias,
    bias_k,
    bias_v,
    add_zero_attn,
    dropout_p,
    out_proj_weight,
    out_proj_bias,
    training=True,
    key_padding_mask=None,
    need_weights=True,
    attn_mask=None,
    use_separate_proj_weight=False,
    q_proj_weight=None,
    k_proj_weight=None,
    v_proj_weight=None,
    static_k=None,
    static_v=None,
    average_attn_weights=True,
    is_causal=False,
):
    """`F.multi_head_attention_forward` as linear products and attention; dropout draws as the original does."""
    batched = query.dim() == 3
    if not batched:
        same = (key is query, value is key)
        query = query.unsqueeze(1)
        key = query if same[0] else key.unsqueeze(1)
        value = key if same[1] else value.unsqueeze(1)
        key_padding_mask = key_padding_mask.unsqueeze(0) if key_padding_mask is not None else None
    length, batch, width = query.shape
    head = width // num_heads
    if use_separate_proj_weight:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    elif query is key and key is value:
        q, k, v = F.linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        weights = in_proj_weight.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def heads(x):
        return x.reshape(x.shape[0], batch, num_heads, head).permute(1, 2, 0, 3)

    q, k, v = heads(q), heads(k), heads(v)
    if attn_mask is not None:
        attn_mask = _keep(attn_mask)
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.view(-1, num_heads, length, key.shape[0])
    if key_padding_mask is not None:
        attn_mask = merge_masks(attn_mask, _keep(key_padding_mask)[:, None, None, :])
    dropout_p = dropout_p if training else 0.0
    if need_weights:
        scores = torch.matmul(q * math.sqrt(1.0 / head), k.transpose(-2, -1))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask.to(scores.dtype)
        weights = F.softmax(scores, dim=-1)
        if dropout_p > 0.0:
            weights = F.dropout(weights, p=dropout_p)
        out = torch.matmul(weights, v)
    else:
        weights = None
        causal = is_causal and key_padding_mask is None
        out = F.scaled_dot_product_attention(q, k, v, None if causal else attn_mask, dropout_p, causal)
    out = F.linear(out.permute(2, 0, 1, 3).reshape(length, batch, width), out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if not batched:
        return out.squeeze(1), None if weights is None else weights.squeeze(0)
    return out, weights


_ATTENTION_EXTRAS = ("bias_k", "bias_v", "static_k", "static_v")


def _plain_attention(args, kwargs) -> bool:
    extras = [*args[7:9], *(kwargs.get(name) for name in _ATTENTION_EXTRAS)]
    add_zero = args[9] if len(args) > 9 else kwargs.get("add_zero_attn", False)
    return not add_zero and all(extra is None for extra in (*extras, *args[21:23]))


def _plain_einsum(args, kwargs) -> bool:
    equation, *operands = args
    if len(operands) == 1 and type(operands[0]) in (list, tuple):
        operands = operands[0]
    if not isinstance(equation, str) or len(operands) != 2:
        return False
    return _plan_einsum(equation, tuple(x.ndim for x in operands)) is not None


def _always(args, kwargs) -> bool:
    return "out" not in kwargs


_RULES = {
    **dict.fromkeys(
        (torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm, "addmm", "baddbmm"),
        (_always, _add_product),
    ),
    torch.einsum: (_plain_einsum, _einsum),
    F.multi_head_attention_forward: (_plain_attention, _multi_head_attention),
}


def decomposition(func, args, kwargs):
    """A function equal to `func` on these arguments that is made of simpler products, or None."""
    try:
        rule = _RULES.get(func)
    except TypeError:
        return None
    return rule[1] if rule is not None and rule[0](args, kwargs) else None
