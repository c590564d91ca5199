"""The path without a graph: products are intercepted while the owner's own forward runs."""

from __future__ import annotations

import functools
import sys

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .attention import fused, transparent
from .decompose import decomposition
from .functions import product_kind
from .intercept import Interceptor
from .mutate import is_mutated
from .operands import Operands, packed_children
from .verify import check_attention

_CALL = nn.Module._call_impl.__code__


def innermost_module() -> nn.Module | None:
    """The module whose forward is running, from the interpreter's stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


class Interception(TorchFunctionMode):
    """Runs one call of an owner with its products computed by its children.

    Args:
        owner (nn.Module): the module.
        child (callable): child(name) -> the callable in charge of a product, None to leave it in float.
        check (bool): run the original's functions; the children only say what would be fused, and that is checked.
    """

    def __init__(self, owner: nn.Module, child, check: bool = False):
        super().__init__()
        self.owner = owner
        self.call = _InterceptedCall(owner, child, check)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.call.concerns(func, args, kwargs):
            return func(*args, **kwargs)
        module = innermost_module()
        if module is not self.owner and not (module is not None and transparent(module)):
            return func(*args, **kwargs)
        simpler = decomposition(func, args, kwargs)
        if simpler is not None:
            with self:
                return simpler(*args, **kwargs)
        return self.call.call(func, args, kwargs)


class _InterceptedCall(Interceptor):
    def __init__(self, owner, child, check):
        super().__init__()
        bound = owner._capture.operands
        self.child, self.check = child, check
        self.operands, self.packed = Operands(owner, bound), packed_children(owner, bound)
        self.unwrapped: list[str] = []  # products without a child, or with another operand than their child's
        self.eps = 0.0  # of the coarsest dtype a product came in

    def concerns(self, func, args, kwargs) -> bool:
        """Whether a function may be a product or carry one on."""
        if product_kind(func, kwargs) is not None or decomposition(func, args, kwargs) is not None:
            return True
        return self.chains.find(args, kwargs) is not None or self.operands.concerns(args)

    def plain(self, func, args, kwargs):
        return func(*args, **kwargs)

    def product(self, name, kind, func, args, kwargs):
        child = self.packed.get(name) if self.check else self.child(name)
        if child is None or not self.operands.serves(name, args, kwargs):
            child = None
            self.unwrapped.append(name)
        out = (child or func)(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.eps = max(self.eps, torch.finfo(out.dtype).eps)
        return out

    def attention(self, name, chain, value):
        child = self.child(name)
        if child is None:
            return NotImplemented
        if not self.check:
            if chain.product in self.unwrapped:
                self.unwrapped.remove(chain.product)
            return fused(chain, value, child)
        fused(chain, value, functools.partial(self._check, chain))
        return NotImplemented

    def _check(self, chain, *operands, **kwargs):
        check_attention(chain, chain.softmax, chain.weights, operands, self.eps, **kwargs)
        return operands[2]


def comparable(owner: nn.Module, forward):
    """The forward a rewritten `owner` is compared with: the original, unless that decomposes into other roundings.

    One rounding flips a sign in a binarized child and changes everything after it. Owners with such children are
    therefore compared after decomposition, which leaves every operation the same. Children whose weight exists only
    as bits compute their products there too.
    """
    packed = packed_children(owner, owner._capture.operands)
    if not packed and not any(is_mutated(module) for module in owner.modules() if module is not owner):
        return forward

    def decomposed(module, *args, **kwargs):
        with Interception(module, packed.get):
            return forward(module, *args, **kwargs)

    return decomposed
