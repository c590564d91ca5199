"""What is known about tensors during discovery: sign, origin and the products that flow into them."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from .attention import version
from .functions import function_name, words
from .parameters import METADATA, WHOLE, form_of

_NONNEGATIVE = words(
    "softmax gumbel_softmax relu relu6 sigmoid hardsigmoid softplus abs exp square rand bernoulli one_hot"
)
_SHAPE = words(
    "view transpose permute to chunk split tensor_split getitem unbind squeeze unsqueeze expand expand_as repeat "
    "repeat_interleave flatten unflatten T mT t swapaxes movedim detach flip roll gather index_select take_along_dim "
    "narrow select as_strided unfold view_as reshape_as pad cat concat stack broadcast_to tile"
)
_LINEAR = _SHAPE | words("mul div add sub masked_fill where neg sum mean dropout")
_MONOTONE = _SHAPE | words(  # of non-negative operands, a non-negative result
    "mul div add masked_fill where dropout dropout1d dropout2d dropout3d feature_dropout sum mean cumsum max amax min "
    "amin maximum minimum max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d sqrt pow clamp clamp_max "
    "pixel_shuffle pixel_unshuffle"
)
_WITH_NUMBERS = words("mul div add masked_fill where pad clamp clamp_max")  # a negative one spoils the sign
_FILLED = words(  # operands give the shape only
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty"
)
_AS = words("expand_as view_as reshape_as to")  # all operands but the first give shape or dtype only
_FROM_PYTHON = words("tensor as_tensor from_numpy")  # whose numbers may come from anywhere
_KEEP_WEIGHTS = _SHAPE | words("dropout masked_fill")


@dataclass(frozen=True)
class Facts:
    """Facts about one tensor.

    Args:
        nonnegative (bool): every element is >= 0 by construction.
        dynamic (bool): it depends on the model's input.
        learned (bool): it depends on a parameter.
        source (str | None): the parameter or buffer it is (a reshaped part of).
        form (str | None): whether it is its source itself, transposed, or a part of it.
        weights (bool): it is a softmax output, reshaped or dropped out.
        flow (frozenset): functional products whose result flows into it through shape, scale and sum operations.
    """

    nonnegative: bool = False
    dynamic: bool = False
    learned: bool = False
    source: str | None = None
    form: str | None = None
    weights: bool = False
    flow: frozenset = frozenset()


_UNKNOWN = Facts(dynamic=True, learned=True)  # made where torch functions are not seen: nothing may be concluded


class Ledger:
    """The facts of every live tensor of a run."""

    def __init__(self, model: nn.Module):
        self._facts = WeakIdKeyDictionary()  # tensor -> (version, facts)
        self.readers: dict[str, set[str]] = {}  # parameter or buffer -> the products by it, "" for any other use
        for name, parameter in model.named_parameters():
            self.put(parameter, Facts(learned=True, source=name, form=WHOLE))
        for name, buffer in model.named_buffers():
            self.put(buffer, Facts(source=name, form=WHOLE))

    def put(self, tensor, facts: Facts):
        self._facts[tensor] = (version(tensor), facts)

    def get(self, tensor) -> Facts:
        facts = self._recorded(tensor)
        return replace(facts, nonnegative=True) if tensor.dtype == torch.bool else facts

    def _recorded(self, tensor) -> Facts:
        count, facts = self._facts.get(tensor, (0, _UNKNOWN))
        if count != version(tensor):  # changed in place by something unseen
            return Facts(dynamic=facts.dynamic, learned=facts.learned)
        return facts

    def known(self, args, kwargs) -> list[tuple]:
        """The tensor operands of a call with their facts; taken before it, since it may work in place."""
        operands = [a for a in tree_iter((args, kwargs)) if isinstance(a, torch.Tensor)]
        return [(operand, self.get(operand)) for operand in operands]

    def follow(self, operands, func, args, kwargs, out, reader=""):
        """Derive the facts of a function's results from those of its operands; `reader`: its path as a product."""
        name, in_place = function_name(func)
        known = [facts for _, facts in operands]
        source = known[0].source if name in _SHAPE and len(known) == 1 else None
        if source is None and name not in METADATA:
            for position, facts in enumerate(known):
                if facts.source is not None:
                    self.readers.setdefault(facts.source, set()).add(reader if position == 1 else "")
        facts = Facts(
            nonnegative=self._nonnegative(name, args, kwargs, known),
            dynamic=self._dynamic(name, args, known),
            learned=any(f.learned for f in known),
            source=source,
            weights=name == "softmax" or (name in _KEEP_WEIGHTS and bool(known) and known[0].weights),
            flow=frozenset().union(*(f.flow for f in known)) if name in _LINEAR else frozenset(),
        )
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                form = source and form_of(name, known[0].form, operands[0][0], tensor)
                self.put(tensor, replace(facts, form=form))
        if in_place and operands:  # `x[i] = y` returns nothing, `x.add_(y)` returns x itself
            self.put(operands[0][0], facts)

    @staticmethod
    def _dynamic(name, args, known) -> bool:
        if name in _FROM_PYTHON and not known:
            return not (args and isinstance(args[0], numbers.Number))
        values = () if name in _FILLED else known[:1] if name in _AS else known
        return any(f.dynamic for f in values)

    @staticmethod
    def _nonnegative(name, args, kwargs, known) -> bool:
        if name in _NONNEGATIVE:
            return True
        if name == "pow" and args[1:] and isinstance(args[1], int) and args[1] % 2 == 0:
            return True
        if name in ("clamp", "clamp_min"):
            low = kwargs.get("min", args[1] if len(args) > 1 else None)
            if isinstance(low, numbers.Number) and low >= 0:
                return True
        if name == "setitem":
            name = "where"
        numeric = [a for a in (*args, *kwargs.values()) if isinstance(a, numbers.Number)]
        if name in _WITH_NUMBERS and any(a < 0 for a in numeric):
            return False
        return name in _MONOTONE and bool(known) and all(f.nonnegative for f in known)
