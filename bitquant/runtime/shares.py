"""Where the time of a forward pass goes, by kind of layer."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from bitquant.capture import original_class
from bitquant.inputs import run
from bitquant.packed.structure import KINDS

from .extractor import steps_of

REST = "between layers"
_PACKED = {"PackedLinear": "1-bit linear", "PackedFunctionalLinear": "1-bit linear", "PackedConv": "1-bit convolution",
           "PackedAttention": "1-bit attention", "PackedEmbedding": "packed embedding"}  # fmt: skip


@torch.no_grad()
def shares(model: nn.Module, inputs: Any, *, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of one forward pass by kind of layer, largest first; their sum is the whole.

    Each is the median of several passes, by hooks around every innermost layer (an extractor counts as one), which
    themselves cost some microseconds a layer: read the shares, not the sum.

    Args:
        model: in eval mode. inputs: a tensor, a tuple or a dict.

    Returns:
        kind, such as ``"1-bit linear"`` or ``"LayerNorm"``, -> milliseconds; ``REST`` is what no layer computes.
    """
    spent, started, handles = defaultdict(float), [], []

    def enter(module, args):
        started.append(time.perf_counter())

    def leave(kind):
        def stop(module, args, output):
            spent[kind] += time.perf_counter() - started.pop()

        return stop

    for module, kind in _timed(model):
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(kind))]
    passes = []
    try:
        for _ in range(rounds + 1):
            spent.clear()
            start = time.perf_counter()
            run(model, inputs)
            whole = time.perf_counter() - start
            passes.append({**spent, REST: whole - sum(spent.values())})
    finally:
        for handle in handles:
            handle.remove()
    kinds = passes[-1]
    medians = {kind: statistics.median(p.get(kind, 0.0) for p in passes[1:]) * 1e3 for kind in kinds}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def _timed(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules that no other in the list is inside of, and their kinds."""
    found, inside = [], set()
    for module in model.modules():
        if module in inside:
            continue
        if steps_of(module) is not None:
            kind = "waveform extractor"
        elif (packed := next((name for name, cls in KINDS.items() if type(module) is cls), None)) in _PACKED:
            kind = _PACKED[packed]
            if getattr(module, "float_path", None) is not None:
                kind += " beside a float path"
        elif isinstance(module, nn.Conv1d) and module.groups > 1:  # with weight norm it has children
            kind = "grouped convolution"
        elif not any(True for _ in module.children()):
            kind = original_class(module).__name__
        else:
            continue
        found.append((module, kind))
        inside.update(module.modules())
    return found
