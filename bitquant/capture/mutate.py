"""Swapping the class of a module in place: parameters, names, ties, hooks and parametrisations stay as they are."""

from __future__ import annotations

from functools import cache

from torch import nn
from torch.nn.utils import parametrize


def _rebuild(mixin, base, name):
    cls = mutated_class(mixin, base, name)
    return cls.__new__(cls)


def _reduce_ex(self, protocol):
    # the class exists in no module, so that it is rebuilt from its two parents
    kind = type(self)
    _, _, *rest = object.__reduce_ex__(self, max(protocol, 2))
    return _rebuild, (kind._mutation_mixin, kind._mutation_base, kind.__name__), *rest


@cache
def mutated_class(mixin: type, base: type, name: str) -> type:
    """The subclass of (mixin, base); equal arguments give the same class."""
    body = {
        "_mutation_mixin": mixin,
        "_mutation_base": base,
        "__reduce_ex__": _reduce_ex,
        "__module__": base.__module__,
    }
    return type(name, (mixin, base), body)


def _body(cls: type) -> dict:
    """What a class defines itself."""
    return {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__", "__doc__")}


def mutate_class_(module: nn.Module, mixin: type, name: str | None = None) -> nn.Module:
    """Put `mixin` in front of a module's class, in place.

    Args:
        module (nn.Module): keeps its state, hooks and identity; nothing happens where it has the mixin already.
        mixin (type): its methods take precedence; its state is the caller's to add.
        name (str): of the new class; "Bit" + the old name by default.

    Returns:
        nn.Module: the same module.
    """
    if isinstance(module, mixin):
        return module
    cls = type(module)
    if parametrize.is_parametrized(module):
        # below the class torch made for this one module, so that `remove_parametrizations` still works
        base = cls.__bases__[0]
        below = mutated_class(mixin, base, name or f"Bit{base.__name__}")
        module.__class__ = type(f"Parametrized{below.__name__}", (below,), _body(cls))
    else:
        module.__class__ = mutated_class(mixin, cls, name or f"Bit{cls.__name__}")
    return module


def restore_class_(module: nn.Module) -> nn.Module:
    """Undo the last `mutate_class_` of a module, in place."""
    cls = type(module)
    if parametrize.is_parametrized(module):
        base = cls.__bases__[0]._mutation_base
        module.__class__ = type(f"Parametrized{base.__name__}", (base,), _body(cls))
    else:
        module.__class__ = cls._mutation_base
    return module


def original_class(module: nn.Module) -> type:
    """The class a module had before any mutation."""
    cls = type(module)
    while "_mutation_base" in vars(cls):
        cls = cls._mutation_base
    return cls


def is_mutated(module: nn.Module) -> bool:
    """Whether a module's class comes from `mutate_class_`."""
    return hasattr(type(module), "_mutation_mixin")
