"""The parameters that children were made for: a child serves no other operand."""

from __future__ import annotations

import functools

import torch

from .attention import version
from .functions import function_name
from .parameters import PART, VIEWS, WHOLE, form_of
from .stand_in import StandIn


class Operands:
    """Follows the parameters of one owner through the views and casts of one call.

    Args:
        owner (nn.Module): the module.
        bound (dict): child name -> {"form": ..., "paths": [...]}, the parameter of its second operand by every path
            below the owner.
        value (callable): value(handle) -> the tensor behind what the model's code holds.
    """

    def __init__(self, owner, bound: dict, value=lambda handle: handle):
        self.value = value
        self.expected, self._known = {}, {}
        for name, record in bound.items():
            parameters = [functools.reduce(getattr, path.split("."), owner) for path in record["paths"]]
            self.expected[name] = record["form"], {_identity(parameter) for parameter in parameters}
            for parameter in parameters:
                self._known[id(parameter)] = parameter, version(parameter), WHOLE, _identity(parameter)

    def serves(self, name: str, args, kwargs) -> bool:
        """Whether the child `name` was made for the operand of this call."""
        if name not in self.expected:
            return True
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        form, identities = self.expected[name]
        found, identity = self._get(self.value(weight))
        return found == form and identity in identities

    def concerns(self, args) -> bool:
        """Whether a function's result may be a parameter in another form."""
        return bool(self._known) and bool(args) and id(self.value(args[0])) in self._known

    def follow(self, func, args, out):
        """Note the result of a function that is no product."""
        name = args[1] if func is getattr else function_name(func)[0]  # a traced property: w.T
        result = self.value(out)
        if name not in VIEWS or not isinstance(result, torch.Tensor) or not self.concerns(args):
            return
        operand = self.value(args[0])
        form, identity = self._get(operand)
        self._known[id(result)] = result, version(result), form_of(name, form, operand, result), identity

    def _get(self, tensor):
        if isinstance(tensor, StandIn):
            return tensor.form, _identity(tensor)
        _, count, form, identity = self._known.get(id(tensor), (None, 0, PART, None))
        return (form, identity) if identity is not None and version(tensor) == count else (PART, None)


def _identity(tensor) -> int:
    return id(tensor.key) if isinstance(tensor, StandIn) else id(tensor)


def packed_children(owner, bound: dict) -> dict:
    """name -> child, for the children without which an owner cannot run: their parameters exist only as bits."""
    names = [
        name
        for name, record in bound.items()
        if isinstance(functools.reduce(getattr, record["paths"][0].split("."), owner), StandIn)
    ]
    return {name: owner._modules[name] for name in names}
