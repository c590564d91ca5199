"""All that is random in training follows from the seed and the number of the step, whichever generator draws it: so a
resumed run draws what an uninterrupted one does, and there is no state to keep."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
ENDS = (str, bytes, int, float, type, types.ModuleType, np.ndarray, torch.Tensor)  # nothing inside is a generator
MOST_ITEMS, MOST_OBJECTS = 1000, 100_000  # of a container, and in all, that are searched


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits for any whole numbers."""
    entropy = [number % 2**64 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, on the CPU and on every accelerator in use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (models draw from it)
    # torch.manual_seed also notes the seed, with a stack trace, for accelerators that were never used
    torch.default_generator.manual_seed(seed)
    for accelerator in (torch.cuda, torch.xpu):
        if accelerator.is_initialized():
            accelerator.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


class Randomness:
    """Every generator that a training may draw from: the global ones, and those that its parts hold.

    Args:
        seed: of the run.
        parts: models, data, functions: torch, NumPy and Python generators in their attributes and in those of their
            modules, samplers, data sets and so on.
    """

    def __init__(self, seed: int, *parts: Any):
        self.seed, self.held = seed, list(_generators(parts))

    def begin(self, *numbers: int) -> None:
        """Seed them all for what has these numbers."""
        seed_all(derived_seed(self.seed, *numbers))
        for index, generator in enumerate(self.held, start=1):
            _seed(generator, derived_seed(self.seed, *numbers, index))


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    else:
        names = ("bit_generator", "_bit_generator")  # of a Generator, of a RandomState; or it is one itself
        source = next((getattr(generator, name) for name in names if hasattr(generator, name)), generator)
        source.state = type(source)(seed).state


def _generators(parts: tuple) -> Iterator[Any]:
    """Generators in the parts, in an order that is the same for parts of the same making."""
    seen, waiting = {}, list(reversed(parts))
    while waiting and len(seen) < MOST_OBJECTS:
        thing = waiting.pop()
        if thing is None or isinstance(thing, ENDS) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, GENERATORS):
            yield thing
        else:
            waiting += reversed(_inside(thing))


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, (set, frozenset)):
        return []  # in no order that a resumed run would find again
    if isinstance(thing, (list, tuple, Mapping)):
        if len(thing) > MOST_ITEMS:
            return []
        return list(thing.values()) if isinstance(thing, Mapping) else list(thing)
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    held = getattr(thing, "__dict__", None)
    if not isinstance(held, dict):
        return []
    children = list(thing.children()) if isinstance(thing, nn.Module) else []  # however many there are
    return [*held.values(), *children]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
