"""Which elements of a model's tensors come from padding: followed from its inputs through every torch function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from bitquant.capture.functions import function_name, words

Known = Tensor | bool  # which elements are valid: bool of the tensor's shape, constant dimensions expanded; True: all

_SHAPE_ONLY = words(
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty "
    "new_tensor"
)
_VIEWS = words("view flatten unflatten squeeze unsqueeze view_as reshape_as ravel")
_EXPANSIONS = words("expand expand_as broadcast_to")
_MOVES = words(
    "transpose permute chunk split tensor_split split_with_sizes getitem unbind T mT t swapaxes swapdims movedim flip "
    "roll gather index_select take_along_dim narrow select unfold repeat repeat_interleave tile diagonal"
)
_JOINS = words("cat concat concatenate stack hstack vstack")
_BY_ROW = words("linear lstm gru rnn_tanh rnn_relu scaled_dot_product_attention multi_head_attention_forward")
_PRODUCTS = {"matmul": 0, "bmm": 0, "mm": 0, "addmm": 1, "baddbmm": 1}  # and where their operands begin
_REDUCTIONS = words(
    "sum mean amax amin max min prod any all std var logsumexp median argmax argmin count_nonzero norm vector_norm"
)
_SAMPLED = (  # those which may give fewer or more steps in time, or places
    "conv", "avg_pool", "max_pool", "lp_pool", "adaptive_", "interpolate", "upsample", "pixel_",
)  # fmt: skip


class Padding:
    """Follows the sequences of one batch through the runs of a model.

    Every tensor made of a masked input takes the input's padding with it, at its own places: transposed and flattened,
    at the frames that convolutions make of samples, behind tokens put in front of it or padding that the model adds. A
    sum of two tensors is padding where one of them is; a matrix product, where all it is made of is. What no rule knows
    is followed no further, and has no padding.

    Args:
        given: the inputs and their masks, bool of the same shape; True for one without padding.
        tokens: how many elements of the masks are valid.
    """

    def __init__(self, given: Iterable[tuple[Tensor, Known]], tokens: int):
        self.tokens = tokens
        self._known = WeakIdKeyDictionary()
        for tensor, valid in given:
            self._known[tensor] = valid

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Context in which to run the model on the batch."""
        handle = register_module_forward_hook(self._leave, with_kwargs=True)
        try:
            with _Following(self._known):
                yield
        finally:
            handle.remove()

    def valid(self, tensor: Tensor) -> Tensor | None:
        """bool, of as many dimensions as a tensor of the run and broadcastable to it, 1 long where nothing varies:
        where it is not padding. None where there is no padding, or nothing else, or its origin is not known."""
        valid = self._known.get(tensor, True)
        if valid is True or bool(valid.all()) or not bool(valid.any()):
            return None
        for dim in range(valid.ndim):
            first = valid.narrow(dim, 0, 1)
            if valid.shape[dim] > 1 and bool((valid == first).all()):
                valid = first
        return valid

    def _leave(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """A module that works where torch functions are not seen gives a row for each row it is given."""
        known = next(((x, self._known[x]) for x in _tensors((args, kwargs)) if x in self._known), None)
        if known is not None:
            for tensor in _tensors(output):
                if tensor not in self._known and (valid := _by_row(*known, tensor)) is not None:
                    self._known[tensor] = valid


class _Following(TorchFunctionMode):
    def __init__(self, known: WeakIdKeyDictionary):
        super().__init__()
        self.known = known

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        known = [(x, self.known[x]) for x in _tensors((args, kwargs)) if x in self.known]
        out = func(*args, **kwargs)
        if not known:
            return out
        name, _ = function_name(func)
        results = [args[0]] if name == "setitem" else list(_tensors(out))
        if not results or name in _SHAPE_ONLY:
            return out
        if all(valid is True for _, valid in known):
            found = [True] * len(results)
        else:
            try:
                with torch.no_grad():
                    found = self._derive(name, func, args, kwargs, known, results)
            except (RuntimeError, TypeError, ValueError, IndexError):  # used in a way that no rule knows
                found = [None] * len(results)
        for tensor, valid in zip(results, found, strict=False):
            if valid is not None:
                self.known[tensor] = valid
            elif tensor in self.known:
                del self.known[tensor]
        return out

    def _of(self, x: Tensor) -> Tensor:
        """What is known of an operand, of its shape: all valid where nothing is."""
        valid = self.known.get(x, True)
        return x.new_ones((), dtype=torch.bool).expand(x.shape) if valid is True else valid

    def _derive(self, name: str, func, args, kwargs, known, results) -> list[Known | None]:
        """What is known of each result; some operand has padding."""
        first, out = next(_tensors((args, kwargs))), results[0]
        moved = first in self.known and name in _VIEWS | _EXPANSIONS | _MOVES | {"as_strided", "pad"}
        if moved and name in _VIEWS:
            return [self._of(first).reshape(out.shape) if out.numel() == first.numel() else None]
        if moved and name in _EXPANSIONS:
            return [self._of(first).expand(out.shape)]
        if moved and name in _MOVES:
            return list(_tensors(func(self._of(first), *args[1:], **kwargs)))
        if moved and name == "as_strided":
            return [func(self._of(first).contiguous(), *args[1:], **kwargs) if first.is_contiguous() else None]
        if moved:  # what the model pads a sequence with is padding too
            mode = _argument(args, kwargs, 2, "mode", "constant")
            return [F.pad(self._of(first).float(), _argument(args, kwargs, 1, "pad", None), mode) > 0]
        if name in _JOINS:
            return [func([self._of(x) for x in args[0]], *args[1:], **kwargs)]
        if name == "setitem":
            return [self._set(*args)]
        if name in _PRODUCTS:
            a, b = args[_PRODUCTS[name] :][:2]
            return [_product(self._of(a), self._of(b)).expand(out.shape)]
        if name == "einsum":
            operands = [_narrow(self._of(x)).float() for x in _tensors(args[1:])]
            return [(torch.einsum(args[0], *operands) > 0).expand(out.shape)]
        if name in _BY_ROW or name.startswith("_transformer_encoder_layer"):
            return [_by_row(first, self._of(first), out)]
        if name in ("embedding", "one_hot"):
            return [self._of(first).unsqueeze(-1).expand(out.shape)]
        if any(word in name for word in _SAMPLED):
            return [_sampled(name, self._of(first), x, args, kwargs) for x in results]
        if name in _REDUCTIONS and out.shape != first.shape:
            return [_reduced(name, self._of(first), x, args, kwargs) for x in results]
        return [_combined(known, x) for x in results]

    def _set(self, target: Tensor, index: Any, value: Any) -> Tensor:
        valid = self._of(target)
        if isinstance(value, Tensor) and value in self.known:
            valid = valid.clone(memory_format=torch.contiguous_format)
            valid[index] = self._of(value)
        return valid


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of arguments or results, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _narrow(valid: Tensor) -> Tensor:
    """The same, 1 long in dimensions that are expanded."""
    for dim, (size, stride) in enumerate(zip(valid.shape, valid.stride(), strict=True)):
        if stride == 0 and size > 1:
            valid = valid.narrow(dim, 0, 1)
    return valid


def _by_row(x: Tensor, valid: Known, out: Tensor) -> Known | None:
    """For a result that differs in one dimension, as the last of a linear layer, or has one more; None for others."""
    if x.shape == out.shape[:-1]:
        return valid if valid is True else valid.unsqueeze(-1).expand(out.shape)
    changed = [dim for dim, sizes in enumerate(zip(x.shape, out.shape, strict=False)) if sizes[0] != sizes[1]]
    if x.ndim != out.ndim or len(changed) > 1:
        return None
    if valid is True or not changed:
        return valid
    return _narrow(valid).any(changed[0], keepdim=True).expand(out.shape)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, k) @ (..., k, m) -> broadcastable to (..., n, m): something valid meets."""
    a, b = _narrow(a), _narrow(b)
    shared = max(a.shape[-1], b.shape[-2])
    a, b = a.expand(*a.shape[:-1], shared), b.expand(*b.shape[:-2], shared, b.shape[-1])
    return torch.matmul(a.float(), b.float()) > 0


def _reduced(name: str, valid: Tensor, out: Tensor, args: tuple, kwargs: dict) -> Known:
    """A mean and its kind: valid where something valid goes in."""
    dims = _argument(args, kwargs, 2 if "norm" in name else 1, "dim", kwargs.get("axis"))
    if dims is None:
        return True
    return valid.float().sum(dims, keepdim=out.ndim == valid.ndim) > 0


def _sampled(name: str, valid: Tensor, out: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """A convolution or pooling (..., channels, *space): every result takes the value at its place."""
    space = next((int(digit) for digit in "123" if digit + "d" in name), valid.ndim - 2)
    valid = _narrow(valid).any(-space - 1, keepdim=True)
    for dim in range(-space, 0):
        before, after = valid.shape[dim], out.shape[dim]
        if before in (1, after):
            continue
        step, border = (_at(_argument(args, kwargs, *place), dim) for place in ((3, "stride", 1), (4, "padding", 0)))
        if name.startswith("conv") and "transpose" not in name and step == 1 and isinstance(border, int):
            # a window that moves on place by place: a causal one lies before its own
            edges = [0, 0] * (-dim - 1) + [border, border]
            valid = F.pad(valid, edges).unfold(dim, before + 2 * border - after + 1, 1).any(-1)
        else:
            places = (torch.arange(after, device=valid.device) * 2 + 1) * before // (2 * after)
            valid = valid.index_select(dim, places)
    return valid.expand(out.shape)


def _argument(args: tuple, kwargs: dict, place: int, name: str, default: Any) -> Any:
    """An argument of a call, by its place or its name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def _at(value: Any, dim: int) -> Any:
    """One dimension's part of a convolution's argument."""
    return value[dim if len(value) > 1 else 0] if isinstance(value, (list, tuple)) else value


def _combined(known: list[tuple[Tensor, Known]], out: Tensor) -> Known | None:
    """An element of a result for each of the operands: padding where one of those is. Else a row for each row."""
    parts = [valid for x, valid in known if _fits(x.shape, out.shape)]
    if not parts:
        return _by_row(*known[0], out)
    masks = [_narrow(valid) for valid in parts if valid is not True]
    if not masks:
        return True
    if len(masks) == 1:
        return masks[0].expand(out.shape)
    valid = masks[0]
    for mask in masks[1:]:
        valid = valid if mask is valid else valid & mask
    return valid.expand(out.shape)


def _fits(shape: torch.Size, out: torch.Size) -> bool:
    """Whether a shape broadcasts to another."""
    return len(shape) <= len(out) and all(a in (1, b) for a, b in zip(shape[::-1], out[::-1], strict=False))
