"""Checkpoints of a run: one file with all that the next update depends on, there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from bitquant.distillation.state import read_tensors, write_tensors

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


def load(directory: Path, updater: Updater) -> int:
    """Puts a checkpoint into a model and an optimizer of the same making; how many updates were done, 0 without one.

    Raises:
        ValueError: it is damaged, or of another model.
    """
    if not (directory / FILE).exists():
        return 0
    meta, tensors = read_tensors(directory / FILE)
    model, found = plain(updater.model), parameters(updater.model)
    state = model.state_dict()
    given = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    if {n: t.shape for n, t in given.items()} != {n: t.shape for n, t in state.items()}:
        raise ValueError(f"{directory / FILE} is of another model: remove it to start anew")
    model.load_state_dict({name: share(value, state[name]) for name, value in given.items()})
    moments: dict[Any, dict[str, Tensor]] = {}
    for place, value in tensors.items():
        kind, _, rest = place.partition(".")
        if kind == "optimizer":
            key, _, name = rest.partition(".")
            on = value if key == "step" else share(value.to(updater.workers.device), found[name])
            moments.setdefault(found[name], {})[key] = on
    updater.optimizer.state.update(moments)
    return meta["updates"]
