"""Call arguments as a flat list of what varies and a hashable key of what is fixed."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from .errors import TraceFailed

_FIXED = frozenset((type(None), bool, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def flatten(args: tuple, kwargs: dict) -> tuple[list, tuple]:
    """Tensors and ints of a call, each object once, and the key of everything else.

    The key holds structure, constants, and each tensor's dtype, device, number of dimensions and identity with
    earlier ones.

    Raises:
        TraceFailed: for an argument that is neither.
    """
    leaves, key = [], []
    positions: dict[int, int] = {}
    _flatten((args, kwargs), leaves, key, positions)
    return leaves, tuple(key)


def _flatten(x, leaves, key, positions):
    kind = type(x)
    if kind in _FIXED:
        key.append((kind, x))
    elif kind is tuple or kind is list:
        key.append((kind, len(x)))
        for item in x:
            _flatten(item, leaves, key, positions)
    elif kind is dict:
        key.append((dict, tuple(x)))
        for item in x.values():
            _flatten(item, leaves, key, positions)
    elif isinstance(x, torch.Tensor):
        seen = positions.setdefault(id(x), len(leaves))
        if seen == len(leaves):
            leaves.append(x)
            key.append((x.dtype, x.device, x.ndim))
        else:
            key.append(("again", seen))
    elif isinstance(x, (int, torch.SymInt)):
        leaves.append(x)
        key.append(int)
    elif kind in pytree.SUPPORTED_NODES:
        items, context = pytree.SUPPORTED_NODES[kind].flatten_fn(x)
        key.append((kind, len(items), repr(context)))
        for item in items:
            _flatten(item, leaves, key, positions)
    else:
        raise TraceFailed(f"it is called with an argument of type {kind.__name__}")


def substitute(structure, make):
    """`structure` with every leaf that `flatten` lists replaced by `make(leaf)`, once for each distinct tensor."""
    made: dict[int, object] = {}

    def replace(leaf):
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in made:
                made[id(leaf)] = make(leaf)
            return made[id(leaf)]
        return make(leaf) if isinstance(leaf, (int, torch.SymInt)) and not isinstance(leaf, bool) else leaf

    return pytree.tree_map(replace, structure)
