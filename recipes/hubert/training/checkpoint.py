"""Checkpoints of a run: one file with all that the next update depends on, there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitquant.distillation.state import MOMENTS, check_finite, check_like, count_of, read_tensors, write_tensors

from .update import Updater, parameters
from .workers import plain, share, whole

FILE = "training.safetensors"


def model_state(updater: Updater) -> dict[str, Tensor]:
    """Weights and buffers by name, whole; every worker must ask for them."""
    return {name: whole(value) for name, value in plain(updater.model).state_dict().items()}


def save(directory: Path, updater: Updater, *, updates: int) -> None:
    """The state after so many updates; every worker must call it, the first one writes.

    Weights, the optimizer's moments, and how many updates are done: from that number follow the position in the data
    and all that is random.
    """
    tensors = {f"model.{name}": value for name, value in model_state(updater).items()}
    for name, parameter in parameters(updater.model).items():
        for key, value in updater.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = whole(value)
    if updater.workers.first:
        write_tensors(directory / FILE, tensors, {"updates": updates})
    updater.workers.wait()


def load(directory: Path, updater: Updater, *, updates: int) -> int:
    """Puts a checkpoint into a model and an optimizer of the same making; how many of the ``updates`` were done, 0
    without one.

    Raises:
        ValueError: it is damaged, or of another model.
    """
    file = directory / FILE
    if not file.exists():
        return 0
    facts, tensors = read_tensors(file)
    done = count_of(facts, "updates", file, range(updates + 1))
    model, found = plain(updater.model), parameters(updater.model)
    state = model.state_dict()
    given = _under("model.", tensors)
    check_like(given, state, file)
    moments = {key: _under(f"optimizer.{key}.", tensors) for key in MOMENTS}
    trained = {name: found[name] for name in moments["step"] if name in found}  # others never had a gradient
    for key, values in moments.items():
        check_like(values, {n: torch.ones(()) if key == "step" else p for n, p in trained.items()}, file)
        check_finite(values, file)
    model.load_state_dict({name: share(value, state[name]) for name, value in given.items()})
    device = updater.workers.device
    for name, parameter in trained.items():
        updater.optimizer.state[parameter] = {
            key: values[name] if key == "step" else share(values[name].to(device), parameter)
            for key, values in moments.items()
        }
    return done


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
