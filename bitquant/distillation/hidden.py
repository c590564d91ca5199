"""Hidden states of the encoder's layers, taken by forward hooks, so that any model gives them."""

from __future__ import annotations

from contextlib import contextmanager

from torch import Tensor, nn

from bitquant.inputs import first_tensor


@contextmanager
def hidden_states(model: nn.Module, paths: list[str]):
    """Context whose value is a dict path -> first tensor of that module's output in the latest forward."""
    states: dict[str, Tensor] = {}

    def record(path: str):
        def hook(module, args, output):
            states[path] = first_tensor(output)

        return hook

    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [path for path in paths if path not in modules]:
        raise ValueError(f"the model has no layer {missing[0]}: change student and teacher alike after quantize_")
    handles = [modules[path].register_forward_hook(record(path)) for path in paths]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
