"""How fast a packed checkpoint is on this machine, beside the float model it was made from."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitquant import ops
from bitquant.data import example_inputs
from bitquant.inputs import first_tensor
from bitquant.measure import milliseconds
from bitquant.profiling.inputs import inputs_for
from bitquant.skeleton import model_class
from bitquant.sources import Source, factory


def float_twin(config: dict[str, Any], meta: dict[str, Any], *, allow_factory: bool) -> nn.Module | None:
    """A float model of the architecture that a loaded checkpoint names, in eval mode, with random weights: they change
    no time. None where the checkpoint names none.

    Args:
        config, meta: of ``bitquant.checkpoint.read_metadata``. allow_factory: call the factory that it names.
    """
    if "model_type" in config:
        parsed, cls = model_class(config)
        return cls._from_config(parsed, dtype=torch.float32).eval()
    if "factory" in meta and allow_factory:
        return factory.make(meta["factory"]).float().eval()
    return None


def shapes(
    source: Source, batches: Iterable[int], seconds: Iterable[float], tokens: Iterable[int], data: str | None = None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(facts, keyword arguments) of every batch size and length: seconds for a model of ``input_values``, tokens for
    one of ``input_ids``; any other model, or with data at a path, gets one sample of its own example inputs, repeated.

    Raises:
        ValueError: nothing says what the model takes, or more tokens than it has positions.
    """
    if data is not None:
        one = [({}, _one(source, data))]
    elif "input_values" in source.arguments:
        one = [({"seconds": s}, inputs_for(source.model, seconds=s, tokens=1)) for s in seconds]
    elif "input_ids" in source.arguments:
        one = [({"tokens": t}, inputs_for(source.model, seconds=1.0, tokens=t)) for t in tokens]
    else:
        one = [({}, _one(source, None))]
    return [
        ({"batch": batch, **facts}, {name: _repeated(value, batch) for name, value in inputs.items()})
        for facts, inputs in one
        for batch in batches
    ]


@torch.inference_mode()
def equals_definition(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether the kernels in use give, bit for bit, what the plain-torch definitions of the ops give."""
    found = first_tensor(model(**inputs))
    with ops.use_backend("naive"):
        return torch.equal(found, first_tensor(copy.deepcopy(model)(**inputs)))


@torch.inference_mode()
def times(models: dict[str, nn.Module], shapes: list[tuple[dict, dict]], *, seconds: float) -> list[dict[str, Any]]:
    """For each shape its facts and the ``milliseconds`` of every model, which take turns."""
    return [{**facts, "milliseconds": milliseconds(models, inputs, seconds=seconds)} for facts, inputs in shapes]


def _one(source: Source, data: str | None) -> dict[str, Any]:
    """One sample of a model's example inputs."""
    return {name: _first(value) for name, value in example_inputs(source, data).items()}


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) else value


def _repeated(value: Any, batch: int) -> Any:
    return value.repeat(batch, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
