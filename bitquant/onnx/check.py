"""The self-check of an exported file (contract 1c): every layer on recorded inputs, then the model running free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn

from bitquant.inputs import named_tensors
from bitquant.onnx.emit import Call, recording
from bitquant.onnx.graph import layers, layers_alone
from bitquant.onnx.runtime import Session
from bitquant.onnx.tracing import as_exported


@dataclass(frozen=True)
class Check:
    """
    Args:
        layers: how many nodes were replayed. values: how many output values they gave.
        mismatches: how many of them differ from the packed layer's, given the same input. worst: the layer with most.
        flipped: share of the quantized inputs of all layers that differ when the whole model runs in the runtime, whose
            float operations round differently. cosine: of all float outputs of that run to the packed model's.
    """

    layers: int
    values: int
    mismatches: int
    worst: str
    flipped: float
    cosine: float


def check(model: nn.Module, proto: ModelProto, inputs: Mapping[str, Any]) -> Check:
    """Compare a file with the model it was made of.

    Args:
        model: the one whose layers are nodes, frozen, as ``build`` returns it.
        proto: the file. inputs: keyword arguments of the model.

    Raises:
        ValueError: the model did not run the same layers as the file has.
    """
    with torch.no_grad(), as_exported(model), recording() as calls:
        expected = model(**inputs)
    nodes = layers(proto)
    by_name = _by_node(calls)
    if by_name.keys() != {node.name for node in nodes}:
        odd = sorted(by_name.keys() ^ {node.name for node in nodes})[0]
        raise ValueError(f"the file and the model differ in {odd!r} on these inputs: export again with them")
    mismatches = _replay(proto, by_name)
    worst = max(mismatches, key=mismatches.get)
    flipped, cosine = _run_free(proto, by_name, inputs, list(named_tensors(expected).values()))
    values = sum(call.output.numel() for call in by_name.values())
    return Check(len(nodes), values, sum(mismatches.values()), worst, flipped, cosine)


def _by_node(calls: list[Call]) -> dict[str, Call]:
    """Calls by the name of their node: a layer that runs again is ``name:1``."""
    found: dict[str, Call] = {}
    for call in calls:
        count = sum(name.partition(":")[0] == call.name for name in found)
        found[f"{call.name}:{count}" if count else call.name] = call
    return found


def _replay(proto: ModelProto, calls: Mapping[str, Call]) -> dict[str, int]:
    """Number of differing values by node."""
    session = Session(layers_alone(proto, {name: call.inputs for name, call in calls.items()}))
    feeds = {f"{name}/{i}": x for name, call in calls.items() for i, x in enumerate(call.inputs)}
    outputs = session(feeds)
    return {name: _differing(outputs[name], call.output) for name, call in calls.items()}


def _differing(a: Tensor, b: Tensor) -> int:
    return b.numel() if a.shape != b.shape else int((a != b).sum())


def _run_free(
    proto: ModelProto, calls: Mapping[str, Call], inputs: Mapping[str, Any], expected: list[Tensor]
) -> tuple[float, float]:
    """Share of flipped levels, and cosine of the outputs."""
    shown = ModelProto()
    shown.CopyFrom(proto)
    present = {value.name for value in (*proto.graph.output, *proto.graph.input, *proto.graph.initializer)}
    for node in layers(proto):
        for position in calls[node.name].levels:
            name = node.input[position]
            if name not in present:
                present.add(name)
                shown.graph.output.add().name = name
    outputs = {**inputs, **Session(shown)(inputs)}
    flips = total = 0
    for node in layers(proto):
        call = calls[node.name]
        for position, levels in call.levels.items():
            if (got := outputs.get(node.input[position])) is not None:
                flips += _differing(levels(got), levels(call.inputs[position]))
                total += call.inputs[position].numel()
    pairs = [
        (outputs[value.name].double().flatten(), reference.double().flatten())
        for value, reference in zip(proto.graph.output, expected, strict=True)
        if reference.is_floating_point()
    ]
    got, reference = (torch.cat(side) for side in zip(*pairs, strict=True))
    return flips / max(total, 1), F.cosine_similarity(got, reference, dim=0).item()
