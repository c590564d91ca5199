"""The path without a graph: products are intercepted while the owner's own forward runs."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .attention import fused, transparent
from .decompose import decomposition
from .functions import product_kind
from .intercept import Interceptor

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
    """

    def __init__(self, owner: nn.Module, child):
        super().__init__()
        self.owner = owner
        self.call = _InterceptedCall(child)

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
    def __init__(self, child):
        super().__init__()
        self.child = child
        self.eps = 0.0  # of the coarsest dtype a product came in

    def concerns(self, func, args, kwargs) -> bool:
        """Whether a function may be a product or carry one on."""
        if product_kind(func, kwargs) is not None or decomposition(func, args, kwargs) is not None:
            return True
        return self.chains.find(args, kwargs) is not None

    def plain(self, func, args, kwargs):
        return func(*args, **kwargs)

    def product(self, name, kind, func, args, kwargs):
        out = (self.child(name) or func)(*args, **kwargs)
        if torch.is_tensor(out) and out.is_floating_point():
            self.eps = max(self.eps, torch.finfo(out.dtype).eps)
        return out

    def attention(self, name, chain, value):
        child = self.child(name)
        return NotImplemented if child is None else fused(chain, value, child)
