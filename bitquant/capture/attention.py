"""Recognises attention spelled out as matmul -> scale -> mask -> softmax -> dropout -> matmul.

The same rules follow real tensors (discovery, fall-back) and traced ones (fx): a *handle* is what the model's code
holds, `value(handle)` the tensor behind it. The rules are structural, so that every path numbers attention alike.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..masks import MASKED
from .functions import function_name
from .masks import merge_masks


@dataclass(frozen=True)
class Chain:
    """A tensor between query x key and weights x value, and how it came about."""

    product: str  # name of the query x key product
    query: Any
    key: Any  # as it enters the product: (..., d, Tk)
    scale: tuple = ()  # ("mul" | "div", number or tensor) in order
    masks: tuple = ()  # ("add" | "sub", tensor), ("keep" | "drop", boolean tensor) in order
    lead: tuple | None = None  # leading sizes of the scores where the masks apply, when they were reshaped
    final: tuple | None = None  # leading sizes after the masks, when reshaped again
    softmax: Any = None  # the weights before dropout, None up to the softmax
    dropout: Any = 0.0  # a probability or an nn.Dropout
    steps: tuple = ()  # every handle of the chain, for its removal from a graph

    @property
    def weights(self):
        """The handle that enters the second product."""
        return self.steps[-1]

    def times(self, weights, value):
        """The second product, in the shape of the fused one (tensors only)."""
        if self.final is not None:
            weights = weights.reshape(*value.shape[:-2], *weights.shape[-2:])
        return torch.matmul(weights.to(value.dtype), value)


def version(tensor) -> int:
    """In-place changes seen so far (inference tensors do not count them)."""
    return 0 if tensor.is_inference() else tensor._version


def transparent(module) -> bool:
    """Modules through which a chain is followed: the plain softmax, dropout and identity, without hooks of a user."""
    plain = type(module).forward in (nn.Dropout.forward, nn.Softmax.forward, nn.Identity.forward)
    return plain and not (module._forward_hooks or module._forward_pre_hooks)


_OPERANDS = ("input", "other", "mask", "value")


class Chains:
    """The chains of one call of one module."""

    def __init__(self, value=lambda handle: handle):
        self.value = value
        self._chains: dict[int, tuple] = {}  # id of a tensor -> (the tensor, version, chain)

    def get(self, handle) -> Chain | None:
        tensor = self.value(handle)
        if not isinstance(tensor, torch.Tensor):
            return None
        _, count, chain = self._chains.get(id(tensor), (None, 0, None))
        return chain if chain is not None and count == version(tensor) else None

    def weights(self, handle, value) -> Chain | None:
        """The chain of softmax weights that are about to be multiplied by `value`."""
        chain = self.get(handle)
        if chain is None or chain.softmax is None or self.value(handle).ndim != self.value(value).ndim:
            return None
        return chain

    def start(self, query, key, scores, product: str):
        """Remember a matmul as possible scores."""
        q, k = self.value(query), self.value(key)
        if q.ndim == k.ndim >= 2 and q.is_floating_point():
            self._put(scores, Chain(product, query, key), scores)

    def _put(self, handle, chain, step):
        tensor = self.value(handle)
        self._chains[id(tensor)] = (tensor, version(tensor), replace(chain, steps=(*chain.steps, step)))

    def find(self, args, kwargs) -> Chain | None:
        """The first chain among the arguments of a function."""
        if not self._chains:
            return None
        return next(filter(None, map(self.get, (*args, *kwargs.values()))), None)

    def follow(self, chain, func, args, kwargs, out):
        """Carry `chain`, found before the call, over any function that is no product."""
        name, _ = function_name(func)
        rule = _RULES.get(name)
        if rule is None or not isinstance(self.value(out), torch.Tensor):
            return
        args = (*args, *(kwargs[k] for k in _OPERANDS if k in kwargs))
        kwargs = {k: v for k, v in kwargs.items() if k not in _OPERANDS}
        current = self.value(chain.steps[-1])
        position = next(i for i, a in enumerate(args) if self.value(a) is current)
        chain = rule(self, chain, position, args, kwargs, out)
        if chain is not None:
            self._put(out, chain, out)

    def follow_module(self, chain, module, out):
        """Carry `chain`, found before the call, over a `transparent` module whose inside is not traced."""
        if not isinstance(self.value(out), torch.Tensor):
            return
        if type(module).forward is nn.Softmax.forward:
            chain = _softmax(self, chain, 0, (chain.steps[-1], module.dim), {}, out)
        elif type(module).forward is nn.Dropout.forward:
            chain = None if chain.softmax is None or chain.dropout != 0.0 else replace(chain, dropout=module)
        if chain is not None:
            self._put(out, chain, out)

    # what a rule needs to know about a handle

    def number(self, handle) -> bool:
        return isinstance(self.value(handle), numbers.Number)

    def tensor(self, handle) -> bool:
        return isinstance(self.value(handle), torch.Tensor)

    def takes_out(self, fill) -> bool:
        """Whether every value of `fill` is that of a masked position."""
        fill = self.value(fill)
        if isinstance(fill, torch.Tensor):
            return bool((fill <= MASKED).all())
        return isinstance(fill, numbers.Number) and fill <= MASKED

    def same_shape(self, first, second) -> bool:
        return self.value(first).shape == self.value(second).shape


def _scaled(op):
    def rule(chains, chain, position, args, kwargs, out):
        if chain.softmax is not None or chain.masks or kwargs or len(args) != 2:
            return None
        if op == "div" and position != 0:
            return None
        factor = args[1 - position]
        if chains.tensor(factor):  # goes to the query: it must not vary along the keys
            shape = chains.value(factor).shape
            if (shape and shape[-1] != 1) or not chains.same_shape(args[position], out) or chain.lead is not None:
                return None
        elif not chains.number(factor):
            return None
        return replace(chain, scale=(*chain.scale, (op, factor)))

    return rule


def _added(op):
    def rule(chains, chain, position, args, kwargs, out):
        if chain.softmax is not None or chain.final or kwargs or len(args) != 2 or (op == "sub" and position):
            return None
        mask = args[1 - position]
        if not chains.tensor(mask) or not chains.same_shape(args[position], out):
            return None
        return replace(chain, masks=(*chain.masks, (op, mask)))

    return rule


def _masked_fill(chains, chain, position, args, kwargs, out):
    if chain.softmax is not None or chain.final or position or len(args) != 3 or not chains.takes_out(args[2]):
        return None
    if chains.value(args[1]).dtype != torch.bool or not chains.same_shape(args[0], out):
        return None
    return replace(chain, masks=(*chain.masks, ("drop", args[1])))


def _where(chains, chain, position, args, kwargs, out):
    if chain.softmax is not None or chain.final or len(args) != 3 or position == 0:
        return None
    if not chains.takes_out(args[3 - position]) or not chains.same_shape(args[position], out):
        return None
    return replace(chain, masks=(*chain.masks, ("keep" if position == 1 else "drop", args[0])))


def _softmax(chains, chain, position, args, kwargs, out):
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if chain.softmax is not None or dim not in (-1, chains.value(out).ndim - 1):
        return None
    return replace(chain, softmax=out)


def _dropout(chains, chain, position, args, kwargs, out):
    p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    if chain.softmax is None or chain.dropout != 0.0:
        return None
    return replace(chain, dropout=p if training else 0.0)


def _cast(chains, chain, position, args, kwargs, out):
    return chain if position == 0 and chains.value(out).is_floating_point() else None


def _view(chains, chain, position, args, kwargs, out):
    """Only the leading sizes may change: (B * h, T, S) <-> (B, h, T, S)."""
    if position or kwargs or chains.value(args[0]).shape[-2:] != chains.value(out).shape[-2:]:
        return None
    sizes = tuple(args[1]) if len(args) == 2 and isinstance(args[1], (tuple, list)) else tuple(args[1:])
    if len(sizes) < 2 or not all(chains.number(size) for size in sizes):
        return None
    if chain.masks or chain.softmax is not None:
        return replace(chain, final=sizes[:-2])
    return replace(chain, lead=sizes[:-2])


_RULES = {
    "mul": _scaled("mul"),
    "div": _scaled("div"),
    "add": _added("add"),
    "sub": _added("sub"),
    "masked_fill": _masked_fill,
    "where": _where,
    "softmax": _softmax,
    "dropout": _dropout,
    "to": _cast,
    "view": _view,
}


def active_dropout(dropout) -> float:
    """The probability a dropout applies now."""
    if isinstance(dropout, nn.Module):
        return dropout.p if dropout.training else 0.0
    return dropout


def _to_mask(masks):
    """One mask for SDPA: boolean (True = keep) where every step only masks out, else additive."""
    mask = None
    for op, term in masks:
        if op == "sub":
            term = -term
        elif op == "drop":
            term = term.logical_not()
        mask = merge_masks(mask, term)
    return mask


def fused(chain: Chain, value, attend):
    """The product weights x value as one call of `attend`, which has the signature of SDPA.

    Runs on tensors and on traced values alike.
    """
    query, key, scale = chain.query, chain.key.transpose(-2, -1), 1.0
    for op, factor in chain.scale:
        if isinstance(factor, numbers.Number):
            scale = scale * factor if op == "mul" else scale / factor
        else:
            query = query * factor if op == "mul" else query / factor
    if chain.lead is not None:
        query = query.reshape(*chain.lead, query.shape[-2], query.shape[-1])
        key = key.reshape(*chain.lead, key.shape[-2], key.shape[-1])
    if chain.final is not None:
        value = value.reshape(*query.shape[:-2], value.shape[-2], value.shape[-1])
    out = attend(query, key, value, attn_mask=_to_mask(chain.masks), dropout_p=chain.dropout, scale=scale)
    if chain.final is not None:
        out = out.reshape(*chain.final, out.shape[-2], out.shape[-1])
    return out
