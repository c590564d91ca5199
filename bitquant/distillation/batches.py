"""The batches of a training: refused where they cannot last, checked one by one, the same again when it is resumed."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from bitquant.inputs import named_tensors, padding_mask


def lasting(batches: Iterable[Any], needed: int) -> Iterable[Any]:
    """The batches, which can be iterated again and again; those of an iterator as a list, if it is known to give as
    many as are ``needed`` (a list's does).

    Raises:
        ValueError: they cannot, or are no batches.
    """
    if isinstance(batches, (Tensor, Mapping, str, bytes)):
        raise ValueError(
            f"batches must be a list of batches or the like: put a single {type(batches).__name__} in a list"
        )
    if not hasattr(type(batches), "__iter__") and not hasattr(type(batches), "__getitem__"):
        raise ValueError(
            f"batches must be a list, a DataLoader or another iterable, not a {type(batches).__name__}; of a function "
            "that makes them, give an object whose __iter__ it is"
        )
    if not hasattr(type(batches), "__next__"):
        return batches
    if (left := operator.length_hint(batches)) < needed:
        raise ValueError(
            f"batches is an iterator, which is spent after one pass, and {needed} batches are needed"
            f"{f', {left} left' if left else ''}: give a list, a DataLoader or an object whose __iter__ starts anew "
            "(not a spent iterator)"
        )
    return list(itertools.islice(batches, needed))


def endless(batches: Iterable[Any], count: int, begin: Callable[[int], None]) -> Iterator[Any]:
    """So many batches, from as many passes as that takes; ``begin`` is called with the number of each, from 0, before
    it is asked for.

    Raises:
        ValueError: there is none, or one that holds nothing.
    """
    if isinstance(batches, DataLoader) and batches.persistent_workers:
        batches._iterator = None  # workers of an earlier pass would go on with the random numbers of that
    number, iterator, fresh = 0, None, True
    while number < count:
        begin(number)
        if iterator is None:
            iterator, fresh = iter(batches), True
        try:
            batch = next(iterator)
        except StopIteration:
            if fresh:
                raise ValueError(
                    "there is no data to distil on: batches is empty (give a list, not a spent iterator)"
                ) from None
            iterator = None
            continue
        fresh = False
        _check(batch, number + 1)
        yield batch
        number += 1


def _check(batch: Any, number: int) -> None:
    found = named_tensors(batch)
    if not found:
        raise ValueError(f"batch {number} is a {type(batch).__name__} that holds no tensor: nothing to train on")
    name, tensor = next(iter(found.items()))
    if tensor.numel() == 0:
        what = f"its tensor {name!r}" if name else "it"
        raise ValueError(f"batch {number} is empty: {what} has the shape {tuple(tensor.shape)}")
    mask = padding_mask(batch)
    if mask is not None and not bool(mask.any()):
        raise ValueError(f"batch {number} is all padding: its attention_mask holds no 1")
