"""What modules keep of a forward in eval mode, such as a bias table gathered from a parameter: old after the next step.

Some of it holds a graph that one backward uses up, and some has none, so that its parameter would never train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bitquant.capture.purity import Attributes

STATE = ("_parameters", "_buffers", "_modules")
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

    They are what a forward in eval mode puts into attributes, which are set back; parameters, buffers and what modules
    keep in training mode are their state and stay.
    """
    drop_caches_(model)
    # our own modules keep nothing of the weights
    saved = [Attributes(module) for module in model.modules() if not type(module).__module__.startswith("bitquant.")]

    def drop() -> None:
        for attributes in saved:
            if not attributes.module.training:
                now = vars(attributes.module)
                changed = (name for name in attributes.changed() if name not in STATE)
                attributes.restore([name for name in changed if _holds_tensor(now.get(name))])

    try:
        yield drop
    finally:
        drop()
        drop_caches_(model)


def _holds_tensor(value: Any, depth: int = DEPTH) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return depth > 0 and any(_holds_tensor(item, depth - 1) for item in value)
    return isinstance(value, Tensor)
