"""Example inputs and batches: a tensor, a tuple of arguments, or a dict of keyword arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.capture.ordinary import ordinary
from bitquant.padding import Padding

MASK = "attention_mask"


def run(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on inputs; copies of those made in inference mode, which no training can use. ValueError: they are
    empty."""
    check_not_empty(inputs)
    inputs = inputs if torch.is_inference_mode_enabled() else ordinary(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def check_not_empty(inputs: Any) -> None:
    """ValueError for a batch of no samples, or whose first tensor holds no values."""
    for index, tensor in enumerate(named_tensors(inputs).values()):
        if tensor.shape[:1] == (0,) or (index == 0 and not tensor.numel()):
            raise ValueError(f"a batch is empty: it holds a tensor of shape {tuple(tensor.shape)}")


def padding_mask(inputs: Any) -> Padding | None:
    """The padding of every masked sequence in inputs, to be followed through a run; None where there is no mask.

    A mask (batch, time) or (batch, samples), boolean or of 0 and 1, belongs to the sequence it is given with:
    ``attention_mask`` to the inputs of its own dict, nested ones too, ``decoder_attention_mask`` to
    ``decoder_input_ids``, ``attention_mask_b`` to ``input_ids_b``.
    """
    given: list[tuple[Tensor, Tensor | bool]] = []
    tokens, found = 0, False
    for mapping in _mappings(inputs):
        masks = {name: value.bool() for name, value in mapping.items() if MASK in name and _is_mask(value)}
        found |= bool(masks)
        tokens += sum(int(mask.sum()) for mask in masks.values())
        given += [(x, True) for name, x in mapping.items() if MASK not in name and isinstance(x, Tensor)]
        for name, mask in masks.items():
            given += [(x, valid) for x in _sequences(mapping, name, masks) if (valid := _spread(mask, x)) is not None]
    return Padding(given, tokens) if found else None


@contextmanager
def followed(inputs: Any) -> Iterator[Padding | None]:
    """Context in which to run a model on inputs; its value is their padding, followed, if any of them is masked."""
    padding = padding_mask(inputs)
    with padding.followed() if padding is not None else nullcontext():
        yield padding


def _mappings(inputs: Any) -> Iterator[Mapping]:
    """Inputs themselves and what is nested in them, where it has names."""
    if isinstance(inputs, Mapping):
        yield inputs
    values = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else ()
    for value in values:
        yield from _mappings(value)


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and bool(((value == 0) | (value == 1)).all())


def _sequences(mapping: Mapping, name: str, masks: Mapping) -> list[Tensor]:
    """The inputs that a mask was given with: by their names, and by their shapes among those of any other names."""
    before, _, after = name.partition(MASK)
    others = [tuple(mask.split(MASK)) for mask in masks if mask != name] + [("decoder_", ""), ("pixel_", "")]
    others = [ends for ends in others if ends not in (("", ""), (before, after))]
    named = {
        key: x
        for key, x in mapping.items()
        if isinstance(x, Tensor)
        and MASK not in key
        and key.startswith(before)
        and key.endswith(after)
        and not any(
            key.startswith(first) and key.endswith(last) for first, last in others if (before, after) == ("", "")
        )
    }
    shape = masks[name].shape
    return (
        [x for key, x in named.items() if key.startswith(before + "input")]
        or [x for x in named.values() if x.shape == shape]
        or [x for x in named.values() if x.ndim == 3 and x.shape[0] == shape[0]]
    )


def _spread(mask: Tensor, x: Tensor) -> Tensor | None:
    """A mask (batch, time) for an input (batch, time), (batch, time, channels) or (batch, channels, time); None where
    the input's shape does not say which."""
    if x.shape == mask.shape:
        return mask
    if x.ndim != 3 or x.shape[0] != mask.shape[0]:
        return None
    places = [dim for dim in (1, 2) if x.shape[dim] == mask.shape[1]]
    return mask.unsqueeze(3 - places[0]).expand(x.shape) if len(places) == 1 else None


def named_tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor in nested mappings, sequences and dataclasses, by its path: ``{"logits": ..., "states.0": ...}``."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, item in items:
        found |= named_tensors(item, f"{name}.{key}" if name else str(key))
    return found


def first_tensor(value: Any) -> Tensor:
    """The first tensor found in inputs or outputs. ValueError when there is none."""
    for tensor in named_tensors(value).values():
        return tensor
    raise ValueError(f"a {type(value).__name__} holds no tensor")
