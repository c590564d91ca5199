"""What is left of a parameter whose values exist only as bits, inside the child that multiplies by it."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from .functions import function_name
from .parameters import METADATA, VIEWS, WHOLE, form_of


class StandIn(torch.Tensor):
    """Shape, dtype and device of a parameter, without values: it can be asked for them, viewed, cast, and passed on to
    the child that holds the bits. Any computation with it raises.

    Args:
        shape, dtype, device: of the parameter.
        key: equal for stand-ins of the same parameter; this one alone by default.
    """

    def __new__(cls, shape, dtype, device, key=None):
        with _disable_current_modes():  # an exporter's mode would make a tensor of a kind of its own
            self = torch.empty(tuple(shape), dtype=dtype, device="meta").as_subclass(cls)
        self.place, self.form = torch.device(device), WHOLE
        self.key = self if key is None else key
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if not all(issubclass(kind, torch.Tensor) for kind in types):
            return NotImplemented  # a traced value takes over
        kwargs, name = kwargs or {}, function_name(func)[0]
        others = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, StandIn)]
        if not args or type(args[0]) is not StandIn or others:
            raise _refused(func)
        self = args[0]
        if name in _PLACES:
            return _PLACES[name](self.place)
        with torch._C.DisableTorchFunctionSubclass():
            if name in METADATA and not (name == "type" and len(args) > 1):
                return func(*args, **kwargs)
            if name not in VIEWS:
                raise _refused(func)
            if func is torch.Tensor.to:
                place, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
                out = torch.Tensor.to(self, dtype=dtype or self.dtype)
            else:
                place, out = None, func(*args, **kwargs)
            return tree_map(lambda x: self._made(name, x, place) if isinstance(x, torch.Tensor) else x, out)

    def _made(self, name, tensor, place):
        if tensor is self and place is None:
            return self
        made = tensor.as_subclass(StandIn)
        made.key, made.place, made.form = self.key, place or self.place, form_of(name, self.form, self, tensor)
        return made

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), StandIn(self.shape, self.dtype, self.place))

    def __reduce_ex__(self, protocol):
        return StandIn, (tuple(self.shape), self.dtype, self.place)

    def __repr__(self, **options):
        return f"StandIn({tuple(self.shape)}, {self.dtype}, {self.place})"


_PLACES = {
    "device": lambda place: place,
    "is_meta": lambda place: place.type == "meta",
    "is_cpu": lambda place: place.type == "cpu",
    "is_cuda": lambda place: place.type == "cuda",
    "get_device": lambda place: -1 if place.index is None else place.index,
}


def _refused(func) -> RuntimeError:
    name = function_name(func)[0] or str(func)
    return RuntimeError(
        f"{name} reads a weight that is packed to bits: only the product that quantize_ found on its example inputs "
        "can use it; quantize the float model again with inputs that show this use"
    )
