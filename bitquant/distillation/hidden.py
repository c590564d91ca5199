"""Hidden states of the encoder's layers, taken by forward hooks, so that any model gives them."""

from __future__ import annotations

from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def hidden_states(model: nn.Module, paths: list[str]):
    """Context whose value is a dict path -> first tensor of that module's output in the latest forward."""
    states: dict[str, Tensor] = {}

    def record(path: str):
        def hook(module, args, output):
            first = output if isinstance(output, Tensor) else next(t for t in output if isinstance(t, Tensor))
            states[path] = first

        return hook

    handles = [model.get_submodule(path).register_forward_hook(record(path)) for path in paths]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
