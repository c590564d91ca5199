"""Local torch.fx traces: one module's own forward, every child a leaf, every value at hand."""

from __future__ import annotations

import contextlib
import functools
import math
import threading

import torch
from torch import fx, nn
from torch.fx import Graph
from torch.utils import _pytree as pytree

from . import reference
from .arguments import substitute
from .attention import active_dropout, fused, transparent
from .decompose import decomposition
from .errors import TraceFailed
from .functions import words
from .intercept import Interceptor
from .operands import Operands, packed_children
from .proxy import CONSTANTS, ValueProxy, value_of, values_of
from .purity import context
from .stand_in import StandIn

_CREATION = words(
    "arange zeros ones empty full eye linspace logspace tensor as_tensor scalar_tensor rand randn randint randperm "
    "tril_indices triu_indices"
)
_PLAIN_OUTPUTS = (ValueProxy, type(None), bool, int, float, str)

# torch.fx patches Module.__call__ for the whole process while it traces: one trace at a time
lock = threading.RLock()


class OwnerTracer(fx.Tracer):
    """Records `forward(owner, *args, **kwargs)` with every product that has a child replaced by a call of it.

    Args:
        owner (nn.Module): the module; it is left unchanged.
        forward (callable): the original, unbound forward of its class.
        device (str): device type whose autocast state must not change inside forward.
    """

    proxy_buffer_attributes = True

    def __init__(self, owner: nn.Module, forward, device: str):
        super().__init__(autowrap_modules=(math,))
        self.owner, self.forward, self.device = owner, forward, device
        self.call = _TracedCall(self)
        self.fused: list[tuple] = []  # (node of an attention child, the chain it replaces)
        self.unwrapped: list[str] = []  # products without a child, or with another operand than their child's
        self.out_spec = None
        self._thread = threading.get_ident()
        self._context = context(device)
        self._running = 0  # > 0 while a value is computed: nothing is recorded then
        self._alive = []  # values must outlive the trace, chains are found by identity

    @property
    def recording(self) -> bool:
        return not self._running and threading.get_ident() == self._thread

    @contextlib.contextmanager
    def values_only(self):
        self._running += 1
        try:
            with torch.no_grad():
                yield
        finally:
            self._running -= 1

    # what torch.fx asks

    def is_leaf_module(self, module, path):
        return True

    def call_module(self, module, forward, args, kwargs):
        if not self.recording:
            return forward(*args, **kwargs)
        if module not in self.submodule_paths and not module.state_dict():
            return forward(*args, **kwargs)  # made in forward, as in nn.Softmax(dim=-1)(scores)
        carried = self.call.chains.find(args, kwargs) if transparent(module) else None
        out = super().call_module(module, forward, args, kwargs)
        if carried is not None:
            self.call.chains.follow_module(carried, module, out)
        return out

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self.recording else attr_val

    def create_arg(self, a):
        if type(a) is ValueProxy:
            return a.node
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            known = any(a is b for b in self.root.buffers()) or a in self.tensor_attrs
            if not known:
                raise TraceFailed("forward makes a tensor that no torch function returned")
        return super().create_arg(a)

    def create_proxy(self, kind, target, args, kwargs, *_, **__):
        if kind not in ("call_function", "call_method"):
            return self.record(kind, target, args, kwargs)
        simpler = decomposition(target, args, kwargs)
        if simpler is not None:
            return simpler(*args, **kwargs)
        return self.call.call(target, tuple(args), kwargs)

    # recording

    def record(self, kind, target, args, kwargs, compute=None):
        """Add a node; `compute` gives its value where the node itself must not run yet."""
        if context(self.device) != self._context:
            raise TraceFailed("forward changes the gradient or autocast mode")
        name = "self_" if target == "self" else None  # a child of this name must not shadow the module
        node = self.create_node(kind, target, self.create_arg(tuple(args)), self.create_arg(dict(kwargs)), name)
        with self.values_only():
            value = (compute or self._run(kind, target))(*values_of(tuple(args)), **values_of(dict(kwargs)))
        self._alive.append(value)
        return value if isinstance(value, CONSTANTS) else ValueProxy(node, self, value)

    def _run(self, kind, target):
        if kind == "call_function":
            return target
        if kind == "call_module":
            return self.root.get_submodule(target)
        if kind == "call_method":
            return lambda source, *args, **kwargs: getattr(source, target)(*args, **kwargs)
        return lambda: functools.reduce(getattr, target.split("."), self.root)  # get_attr

    def record_guard(self, guard, proxy, expected):
        self.create_node("call_function", guard, (proxy.node, expected), {})

    # the trace

    def placeholder(self, leaf):
        node = self.create_node("placeholder", f"arg{self._inputs}", (), {})
        self._inputs += 1
        value = leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, torch.Tensor) else leaf
        self._alive.append(value)
        return ValueProxy(node, self, value)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        self._inputs = 0
        args, kwargs = substitute(self._arguments, self.placeholder)

        def forward(owner):
            out = self.forward(owner, *args, **kwargs)
            if _plain_output(out):
                return out
            leaves, self.out_spec = pytree.tree_flatten(out)
            return leaves

        return forward, [self.root]

    def trace_call(self, args, kwargs) -> Graph:
        """The graph of one call.

        Raises:
            TraceFailed: where the forward cannot be traced, whatever the cause.
        """
        self._arguments = (args, kwargs)
        try:
            with lock, self._patched():
                graph = self.trace(self.owner)
        except TraceFailed:
            raise
        except Exception as error:
            raise TraceFailed(f"{type(error).__name__}: {error}") from error
        return graph

    @contextlib.contextmanager
    def _patched(self):
        """Creation functions and `autograd.Function.apply` are recorded: neither dispatches on a proxy."""
        function = torch.autograd.Function
        originals = {name: getattr(torch, name) for name in _CREATION}
        apply = vars(function).get("apply")
        bound = function.apply.__func__

        def recorded(current):
            original = getattr(current, "recorded", current)  # `current` is a wrapper where two traces are nested

            @functools.wraps(original)
            def create(*args, **kwargs):
                if not self.recording:
                    return current(*args, **kwargs)
                return self.create_proxy("call_function", original, args, kwargs)

            create.recorded = original
            return create

        def apply_leaf(cls, *args, **kwargs):
            if not self.recording or not any(type(a) is ValueProxy for a in (*args, *kwargs.values())):
                return bound(cls, *args, **kwargs)
            return self.create_proxy("call_function", _autograd_leaf(cls), args, kwargs)

        try:
            for name, original in originals.items():
                setattr(torch, name, recorded(original))
            function.apply = classmethod(apply_leaf)
            yield
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)
            if apply is None:
                del function.apply
            else:
                function.apply = apply


def _plain_output(out) -> bool:
    """Whether the generated code can return `out` as it is."""
    if type(out) in (tuple, list):
        return all(_plain_output(x) for x in out)
    return type(out) in _PLAIN_OUTPUTS


@functools.cache
def _autograd_leaf(cls):
    """A function for `cls.apply`, so that a custom autograd function keeps its own backward."""

    def apply(*args, **kwargs):
        return cls.apply(*args, **kwargs)

    apply.__name__ = apply.__qualname__ = f"{cls.__name__}_apply"
    apply.__module__ = cls.__module__
    return apply


class _TracedCall(Interceptor):
    """Turns the products of the traced call into nodes."""

    def __init__(self, tracer: OwnerTracer):
        super().__init__(value=value_of)
        self.tracer = tracer
        bound = tracer.owner._capture.operands
        self.operands = Operands(tracer.owner, bound, value_of)
        self.packed = packed_children(tracer.owner, bound)

    def plain(self, func, args, kwargs):
        return self.tracer.record("call_method" if isinstance(func, str) else "call_function", func, args, kwargs)

    def product(self, name, kind, func, args, kwargs):
        if name not in self.tracer.owner._modules or not self.operands.serves(name, args, kwargs):
            self.tracer.unwrapped.append(name)
            return self.plain(func, args, kwargs)
        if name not in self.packed:
            return self.tracer.record("call_module", name, args, kwargs, compute=reference.FLOAT[kind])
        # the child does not read the stand-in of its weight, so that the graph need not hold it
        args = [None if isinstance(value_of(a), StandIn) else a for a in args]
        kwargs = {k: None if isinstance(value_of(a), StandIn) else a for k, a in kwargs.items()}
        return self.tracer.record("call_module", name, args, kwargs)

    def attention(self, name, chain, value):
        tracer = self.tracer
        if name not in tracer.owner._modules:
            return NotImplemented

        def attend(*operands, dropout_p, **kwargs):
            if isinstance(dropout_p, nn.Module):
                dropout_p = tracer.record("call_function", active_dropout, (dropout_p,), {})
            kwargs["dropout_p"] = dropout_p
            out = tracer.record("call_module", name, operands, kwargs, compute=reference.attention)
            if chain.product in tracer.unwrapped:
                tracer.unwrapped.remove(chain.product)
            tracer.fused.append((out.node, chain))
            return out

        return fused(chain, value, attend)
