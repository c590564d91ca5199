"""Packed linear layers whose outputs only 1-bit layers read: they hand on bits, and no float is written between."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitquant.inputs import run
from bitquant.packed import PackedLinear
from bitquant.packed.deferred import LEAST, watch


@torch.no_grad()  # not inference_mode, which would mark what a model caches
def hand_on_bits_(model: nn.Module, example_inputs: Any) -> list[str]:
    """Let every ``PackedLinear`` defer its output that, in a run on ``example_inputs``, nothing reads but a
    ``PackedLinear`` of 1-bit inputs, directly or behind a ReLU; their paths."""
    layers = {m: path for path, m in model.named_modules() if _can_defer(m)}
    for layer in layers:
        layer.defers_from = None
    run(model, example_inputs)  # traces what has to be traced
    found = set()
    try:
        for layer in layers:
            layer.defers_from = 0
        with watch() as made:
            outputs = run(model, example_inputs)
        kept = {layer for layer, product in made if product() is not None}  # in the outputs, or by the model itself
        del outputs
        found = {layer for layer, _ in made if layer.defers_from is not None} - kept
    finally:
        for layer in layers:
            layer.defers_from = LEAST if layer in found else None
    return [path for layer, path in layers.items() if layer in found]


def _can_defer(module: nn.Module) -> bool:
    """Whether a module is a layer of 1-bit inputs whose output is its bits' product alone."""
    return type(module) is PackedLinear and module.bits == 1 and module.float_path is None
