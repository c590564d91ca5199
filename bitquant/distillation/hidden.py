"""Hidden states of the encoder's layers, taken by forward hooks, so that any model gives them."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

from torch import Tensor, nn

from bitquant.inputs import first_tensor

AGAIN = " again "  # between the path of a layer and the number of its run in a forward, from 1


@contextmanager
def hidden_states(model: nn.Module, paths: list[str]):
    """Context whose value is a dict of the first tensor of each module's output in the latest forward of the model: by
    the path of the module, and of a further run of it in the same forward, ``"{path} again {n}"``."""
    states: dict[str, Tensor] = {}
    runs: Counter[str] = Counter()

    def begin(module, args):
        states.clear()
        runs.clear()

    def record(path: str):
        def hook(module, args, output):
            states[f"{path}{AGAIN}{runs[path]}" if runs[path] else path] = first_tensor(output)
            runs[path] += 1

        return hook

    if missing := lacking(model, paths):
        raise ValueError(f"the model has no layer {missing[0]}: change student and teacher alike after quantize_")
    handles = [model.get_submodule(path).register_forward_hook(record(path)) for path in paths]
    handles.append(model.register_forward_pre_hook(begin, prepend=True))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def lacking(model: nn.Module, paths: list[str]) -> list[str]:
    """The paths that name no module of the model."""

    def has(path: str) -> bool:
        try:
            model.get_submodule(path)
        except AttributeError:
            return False
        return True

    return [path for path in paths if not has(path)]


def in_both(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> list[str]:
    """Names of the states to compare: those of layers that ran equally often in both models, so that each run has its
    own counterpart; layer drop leaves some out."""
    ours, theirs = (Counter(name.partition(AGAIN)[0] for name in states) for states in (student, teacher))
    return [name for name in teacher if (path := name.partition(AGAIN)[0]) in ours and ours[path] == theirs[path]]
