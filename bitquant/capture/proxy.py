"""Proxies that carry the value they stand for, so that ordinary Python control flow can be traced.

Sizes stay symbolic: a graph holds for every length. Where Python needs a concrete value (a branch, an index, `len`), a
guard is recorded. Whatever a call's signature decides (dtype, device, number of dimensions) is a constant.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from . import guards
from .errors import TraceFailed
from .functions import words

CONSTANTS = (type(None), str, type, torch.dtype, torch.device, torch.layout, torch.memory_format)

_CONSTANT_ATTRIBUTES = words(
    "dtype device layout ndim is_cuda is_cpu is_sparse is_nested is_quantized is_mkldnn is_mps is_xpu is_meta is_mtia "
    "names itemsize"
)
_CONSTANT_METHODS = words("dim ndimension is_floating_point is_complex is_signed get_device element_size")


class ValueProxy(fx.Proxy):
    """An `fx.Proxy` with the value its node had in the traced call."""

    def __init__(self, node, tracer, value):
        super().__init__(node, tracer)
        object.__setattr__(self, "_value", value)

    @property
    def __class__(self):
        # isinstance(proxy, int) or (proxy, tuple) answers as the value would; a proxy that claimed to be a tensor
        # would crash the C++ argument parser, which believes isinstance
        return ValueProxy if isinstance(self._value, torch.Tensor) else type(self._value)

    def __getattr__(self, name):
        if name in ("_value", "node", "tracer"):
            raise AttributeError(name)
        if name in ("grad_fn", "is_leaf", "grad"):
            raise TraceFailed(f"forward reads {name}")
        attribute = getattr(self._value, name)
        if name == "requires_grad":
            self.tracer.record_guard(guards.guard_requires_grad, self, attribute)
            return attribute
        if name in _CONSTANT_ATTRIBUTES or name in _CONSTANT_METHODS or isinstance(attribute, CONSTANTS):
            return attribute
        if callable(attribute) and not isinstance(attribute, torch.Tensor):
            return lambda *args, **kwargs: self.tracer.create_proxy("call_method", name, (self, *args), kwargs)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _guarded(self, guard, convert):
        value = convert(self._value)
        self.tracer.record_guard(guard, self, value)
        return value

    def __bool__(self):
        return self._guarded(guards.guard_bool, bool)

    def __int__(self):
        return self._guarded(guards.guard_int, int)

    def __index__(self):
        return self._guarded(guards.guard_index, operator.index)

    def __float__(self):
        return self._guarded(guards.guard_float, float)

    def __len__(self):
        # the number of dimensions is part of a call's signature
        return len(self._value) if isinstance(self._value, torch.Size) else self._guarded(guards.guard_len, len)

    def __iter__(self):
        return iter([self[i] for i in range(len(self))])

    def __contains__(self, item):
        return any(bool(item == element) for element in self)

    def __hash__(self):
        return id(self)

    def __round__(self, digits=None):
        args = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", round, args, {})

    def __setitem__(self, key, value):
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def keys(self):
        return self._value.keys()


def _in_place(name):
    on_tensors = getattr(operator, f"i{name}")
    on_numbers = getattr(operator, f"{name}_" if name in ("and", "or") else name)

    def apply(self, other):
        target = on_tensors if isinstance(self._value, torch.Tensor) else on_numbers
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(ValueProxy, f"__i{_name}__", _in_place(_name))


def value_of(handle):
    """The value behind a proxy; anything else is its own value."""
    return handle._value if type(handle) is ValueProxy else handle


def values_of(structure):
    """`value_of` through tuples, lists, dicts and slices."""
    kind = type(structure)
    if kind is ValueProxy:
        return structure._value
    if kind in (tuple, list):
        return kind(values_of(x) for x in structure)
    if kind is dict:
        return {k: values_of(v) for k, v in structure.items()}
    if kind is slice:
        return slice(values_of(structure.start), values_of(structure.stop), values_of(structure.step))
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return kind(*(values_of(x) for x in structure))
    return structure
