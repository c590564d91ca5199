"""Leaving no trace: random state, tensors and attributes as they were before a trial run."""

from __future__ import annotations

import contextlib
import random
import sys

import torch

from .attention import version


def global_random_state():
    """State of Python's and NumPy's global generators, which a graph cannot record draws from."""
    state = random.getstate()
    if "numpy" in sys.modules:
        generator = sys.modules["numpy"].random.get_state(legacy=False)["state"]
        state += (generator["pos"], generator["key"].tobytes())
    return state


def _same(tensor):
    return tensor


@contextlib.contextmanager
def restored(tensors):
    """Undo in-place changes of `tensors` and all draws of random numbers on leaving.

    Hooks on saved tensors are off meanwhile: gradient checkpointing counts what a forward saves.
    """
    saved = [(t, version(t), t.detach().clone()) for t in tensors]
    python, devices = random.getstate(), range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            yield
    finally:
        random.setstate(python)
        for tensor, count, value in saved:
            # an unchanged tensor is not written to: autograd may have saved it
            if tensor.is_inference() or version(tensor) != count:
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(value)


@contextlib.contextmanager
def untouched(owner):
    """Undo on leaving what a run of `owner` changes: random state, its tensors, and attributes of modules below it."""
    attributes = [Attributes(module) for module in owner.modules() if module is not owner]
    try:
        with restored([*owner.parameters(), *owner.buffers()]):
            yield
    finally:
        for saved in attributes:
            saved.restore()


def context(device: str) -> tuple:
    """The ambient modes a graph is traced under: gradients, inference mode and autocast on `device` and the CPU."""
    devices = ("cpu",) if device == "cpu" else (device, "cpu")
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


class Attributes:
    """The attributes of a module: whether a call changed them, and how to put them back."""

    _CONTAINERS = (list, dict, set)

    def __init__(self, module):
        self.module = module
        self.saved = {k: (v, self._copy(v)) for k, v in vars(module).items()}

    @classmethod
    def _copy(cls, value):
        return value.copy() if isinstance(value, cls._CONTAINERS) else value

    @staticmethod
    def _identities(value):
        if isinstance(value, dict):
            return {k: id(v) for k, v in value.items()}
        return [id(v) for v in value]

    def changed(self) -> list[str]:
        """Names of attributes that were added, removed, replaced or, for containers, changed inside."""
        now = vars(self.module)
        names = [k for k in now if k not in self.saved]
        for name, (value, copy) in self.saved.items():
            replaced = name not in now or now[name] is not value
            if replaced or (isinstance(value, self._CONTAINERS) and self._identities(value) != self._identities(copy)):
                names.append(name)
        return names

    def restore(self):
        now = vars(self.module)
        for name in [k for k in now if k not in self.saved]:
            del now[name]
        for name, (value, copy) in self.saved.items():
            if isinstance(value, self._CONTAINERS) and self._identities(value) != self._identities(copy):
                value.clear()
                value.extend(copy) if isinstance(value, list) else value.update(copy)
            now[name] = value


class Snapshot:
    """The structure of a model: classes, children, attributes, and which parameters it holds (not their values)."""

    def __init__(self, model):
        self.saved = [(module, type(module), Attributes(module)) for module in model.modules()]

    def restore(self):
        for module, kind, attributes in self.saved:
            module.__class__ = kind
            attributes.restore()
