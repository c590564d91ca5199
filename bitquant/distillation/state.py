"""Training checkpoints: all that the next step depends on, in one safetensors file that appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitquant.atomic import replacing_file
from bitquant.json_object import differences

CURRENT = "training.safetensors"
MOMENTS = {"step": (), "exp_avg": None, "exp_avg_sq": None}  # of AdamW, with their shapes; None for the parameter's
SHOWN = 400  # characters of what differs between two settings


class TrainingState:
    """Checkpoints of one run in one directory, written to a temporary name and renamed.

    Args:
        directory: created when the first checkpoint is written.
        settings: what decides the result; a run is resumed only with equal settings.
    """

    def __init__(self, directory: str | os.PathLike, settings: dict[str, Any]):
        self.directory, self.settings = Path(directory), settings
        self.start, self.before = time.perf_counter(), 0.0

    def save(self, student: nn.Module, optimizer: torch.optim.Optimizer, *, stage: int, step: int) -> None:
        """The state after ``step`` steps of ``stage``."""
        tensors = {f"student.{name}": value for name, value in student.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        meta = {"stage": stage, "step": step, "settings": self.settings}
        meta["seconds"] = self.before + time.perf_counter() - self.start
        write_tensors(self.directory / CURRENT, tensors, meta)

    def load(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the latest checkpoint's tensors into a student and an AdamW optimizer of the same making.

        Raises:
            ValueError: the checkpoint is damaged, or of another student.
        """
        file = self.directory / CURRENT
        tensors = read_tensors(file)[1]
        state = _moments(_under("optimizer.", tensors), optimizer, file)
        _put(_under("student.", tensors), student, file)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def position(self) -> tuple[int, int]:
        """(stage, steps done in it) of the latest checkpoint; (0, 0) when there is none.

        Raises:
            ValueError: the checkpoint is damaged, or of a run with other settings (the differences are named).
        """
        file = self.directory / CURRENT
        if not file.exists():
            return 0, 0
        facts = read_facts(file)
        settings = facts.get("settings")
        if not isinstance(settings, dict) or any(isinstance(value, (dict, list)) for value in settings.values()):
            raise damaged(file, "it has no settings")
        if changed := differences(settings, self.settings):
            changed = "; ".join(changed)
            changed = changed if len(changed) <= SHOWN else f"{changed[:SHOWN]}..."
            raise ValueError(f"{self.directory} was trained with other settings ({changed}): not resumed")
        stages = self.settings["stages"].count(",") + 1
        stage = count_of(facts, "stage", file, range(stages))
        step = count_of(facts, "step", file, range(1, self.settings["steps"] + 1))
        self.before = _seconds(facts, file)
        return stage, step

    def save_stage(self, student: nn.Module, stage: int) -> None:
        """Keep the result of a stage, the teacher of the next."""
        write_tensors(self._stage_file(stage), dict(student.state_dict()), {"stage": stage})

    def load_stage(self, student: nn.Module, stage: int) -> None:
        """Put the result of a stage into a student of that stage's widths. ValueError when it is damaged or missing."""
        file = self._stage_file(stage)
        if not file.exists():
            raise ValueError(
                f"{file}, the teacher of the stage to go on with, is missing: remove {CURRENT} to start anew"
            )
        _put(read_tensors(file)[1], student, file)

    def _stage_file(self, stage: int) -> Path:
        return self.directory / f"stage-{stage}.safetensors"


def seconds_trained(directory: Path) -> float:
    """Wall time of the training up to its latest checkpoint, over all the times that it was resumed; else 0."""
    file = directory / CURRENT
    return _seconds(read_facts(file), file) if file.exists() else 0.0


def write_tensors(file: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """A safetensors file with JSON-able facts, written to a temporary name and renamed; its directory is made.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # tied tensors are written once for each name: the format has no aliases
    owned = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    try:
        with replacing_file(file) as fresh:
            save_file(owned, fresh, metadata={"bitquant": json.dumps(meta)})
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(f"{file} cannot be written: {error}") from None


def read_tensors(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and the tensors of such a file; ValueError when it is damaged."""
    return _read(file, lambda stream: {name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118


def read_facts(file: Path) -> dict[str, Any]:
    """The facts of such a file alone; ValueError when it is damaged."""
    return _read(file, lambda stream: None)[0]


def _read(file: Path, tensors: Callable[[Any], Any]) -> tuple[dict[str, Any], Any]:
    try:
        with safe_open(file, framework="pt") as stream:
            facts = json.loads((stream.metadata() or {})["bitquant"])
            if not isinstance(facts, dict):
                raise ValueError("its facts are no JSON object")
            return facts, tensors(stream)
    except OSError:
        raise
    except Exception as error:  # the library has no list of what a damaged file makes it raise
        raise damaged(file, error) from None


def damaged(file: Path, problem: object) -> ValueError:
    """What is raised for a file that is no training checkpoint of ours, in one line."""
    problem = " ".join(str(problem).split())[:200]
    return ValueError(f"{file} is damaged or not a training checkpoint: {problem}; remove it to start anew")


def count_of(facts: dict[str, Any], name: str, file: Path, allowed: range) -> int:
    """A whole number among a file's facts; ValueError when it is none, or not one of those allowed."""
    value = facts.get(name)
    if type(value) is not int or value not in allowed:
        raise damaged(file, f"its {name} is not a whole number from {allowed[0]} to {allowed[-1]}")
    return value


def _seconds(facts: dict[str, Any], file: Path) -> float:
    value = facts.get("seconds", 0.0)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise damaged(file, "its seconds are no time")
    return float(value)


def check_like(tensors: dict[str, Tensor], wanted: dict[str, Tensor], file: Path) -> None:
    """ValueError unless the tensors have the names, shapes and dtypes of those that are wanted."""
    for odd in sorted(tensors.keys() ^ wanted.keys()):
        raise damaged(file, f"{odd[:100]!r} is {'missing' if odd in wanted else 'of another model'}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise damaged(file, f"{name[:100]!r} is of another model: {tensor.dtype} of shape {list(tensor.shape)[:8]}")


def _put(tensors: dict[str, Tensor], student: nn.Module, file: Path) -> None:
    check_like(tensors, student.state_dict(), file)
    student.load_state_dict(tensors)


def _moments(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, file: Path) -> dict[int, dict[str, Tensor]]:
    """An optimizer's state, by the number of the parameter; those that never had a gradient have none."""
    wanted, state = {}, {}
    numbers = {name.partition(".")[0] for name in tensors}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        if str(index) in numbers:
            wanted |= {f"{index}.{key}": parameter if shape is None else torch.ones(shape)
                       for key, shape in MOMENTS.items()}  # fmt: skip
            state[index] = {key: tensors.get(f"{index}.{key}") for key in MOMENTS}
    check_like(tensors, wanted, file)
    check_finite(tensors, file)
    return state


def check_finite(tensors: dict[str, Tensor], file: Path) -> None:
    """ValueError for numbers that no optimizer keeps."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise damaged(file, f"{name[:100]!r} is not finite")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
