"""Training checkpoints: all that the next step depends on, in one safetensors file that appears whole or not at all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitquant.atomic import replacing_file
from bitquant.json_object import differences

CURRENT = "training.safetensors"


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
        tensors["rng"] = torch.get_rng_state()
        meta = {"stage": stage, "step": step, "settings": self.settings}
        meta["seconds"] = self.before + time.perf_counter() - self.start
        write_tensors(self.directory / CURRENT, tensors, meta)

    def load(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the latest checkpoint's tensors into a student and an optimizer of the same making."""
        tensors = read_tensors(self.directory / CURRENT)[1]
        torch.set_rng_state(tensors.pop("rng"))
        student.load_state_dict(_under("student.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def position(self) -> tuple[int, int]:
        """(stage, steps done in it) of the latest checkpoint; (0, 0) when there is none.

        Raises:
            ValueError: the checkpoint is damaged, or of a run with other settings (the differences are named).
        """
        if not (self.directory / CURRENT).exists():
            return 0, 0
        meta = read_tensors(self.directory / CURRENT)[0]
        if changed := differences(meta["settings"], self.settings):
            raise ValueError(f"{self.directory} was trained with other settings ({'; '.join(changed)}): not resumed")
        self.before = meta.get("seconds", 0.0)
        return meta["stage"], meta["step"]

    def save_stage(self, student: nn.Module, stage: int) -> None:
        """Keep the result of a stage, the teacher of the next."""
        write_tensors(self._stage_file(stage), dict(student.state_dict()), {"stage": stage})

    def load_stage(self, student: nn.Module, stage: int) -> None:
        """Put the result of a stage into a student of that stage's widths."""
        student.load_state_dict(read_tensors(self._stage_file(stage))[1])

    def _stage_file(self, stage: int) -> Path:
        return self.directory / f"stage-{stage}.safetensors"


def seconds_trained(directory: Path) -> float:
    """Wall time of the training up to its latest checkpoint, over all the times that it was resumed; else 0."""
    file = directory / CURRENT
    return read_tensors(file)[0].get("seconds", 0.0) if file.exists() else 0.0


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
    try:
        with safe_open(file, framework="pt") as stream:
            meta = json.loads((stream.metadata() or {})["bitquant"])
            return meta, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged or not a training checkpoint: {error}; remove it to start anew") from None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
