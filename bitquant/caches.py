"""What modules keep of a forward in eval mode, such as a bias table gathered from a parameter: old after the next step.

Some of it holds a graph that one backward uses up, and some has none, so that its parameter would never train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

MODULES_OWN = frozenset(vars(nn.Module()))  # parameters, buffers, children, hooks: a module's state
CONTAINERS = (dict, list, set)
DEPTH = 3  # of containers that are searched


def drop_caches_(model: nn.Module) -> None:
    """Let modules drop what they keep in eval mode: by convention ``train()`` does. Every module's mode stays."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def caches_dropped(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Context that a model enters and leaves without such tensors; its value drops, when called, those kept since.

    They are what a forward in eval mode puts into attributes, which are set back, with what else it has replaced in
    the same module; parameters, saved buffers and what modules keep in training mode are their state and stay.
    """
    drop_caches_(model)
    # our own modules keep nothing of the weights
    kept = [_Kept(module) for module in model.modules() if not type(module).__module__.startswith("bitquant.")]

    def drop() -> None:
        for attributes in kept:
            attributes.drop()

    try:
        yield drop
    finally:
        drop()
        drop_caches_(model)


class _Kept:
    """The attributes and unsaved buffers of a module, and how to set them back once it keeps tensors in attributes: all
    that its forward has replaced, since what says whether a cache is there may be a number or a buffer."""

    def __init__(self, module: nn.Module):
        self.module = module
        own = {name: value for name, value in vars(module).items() if name not in MODULES_OWN}
        self.before = {n: (v, v.copy() if isinstance(v, CONTAINERS) else None) for n, v in own.items()}
        self.buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}

    def drop(self) -> None:
        if self.module.training:
            return
        now = vars(self.module)
        changed = [name for name, value in now.items() if name not in MODULES_OWN and self._is_new(name, value)]
        if not any(_holds_tensor(now[name]) for name in changed):
            return
        for name in changed:
            if name not in self.before:
                del now[name]
                continue
            now[name], content = self.before[name]
            if content is not None:
                now[name].clear()
                now[name].extend(content) if isinstance(content, list) else now[name].update(content)
        self.module._buffers.update(self.buffers)

    def _is_new(self, name: str, value: Any) -> bool:
        old, content = self.before.get(name, (None, None))
        return name not in self.before or value is not old or _differs(value, content)


def _differs(container: Any, content: Any) -> bool:
    """Whether a container holds other objects than it did."""
    if content is None or len(container) != len(content):
        return content is not None
    if isinstance(content, dict):
        return any(key not in container or container[key] is not value for key, value in content.items())
    return {id(item) for item in container} != {id(item) for item in content}


def _holds_tensor(value: Any, depth: int = DEPTH) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return depth > 0 and any(_holds_tensor(item, depth - 1) for item in value)
    return isinstance(value, Tensor)
