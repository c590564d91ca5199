"""The class an owner gets: its forward runs graphs of itself, or falls back to interception."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field

import torch
from torch import nn

from . import tracer
from .arguments import flatten
from .errors import CaptureError, GuardFailed, TraceFailed
from .fallback import Interception, comparable
from .mutate import mutate_class_, restore_class_
from .purity import context
from .rewrite import Rewritten, rewrite
from .verify import compare, trial

GRAPHS_A_KEY = 8  # more branches on sizes than this in one kind of call, or
KEYS = 64  # more kinds of calls than this, and an owner falls back


@dataclass
class Capture:
    """What an owner knows about its own rewriting.

    Args:
        children (dict[str, str]): name -> kind of every product that was given a child.
        left (list[str]): names of the products that were left in float on purpose.
        operands (dict[str, dict]): name -> the parameter that the child was made for, {"form": "whole" or
            "transposed", "paths": every path it has below the owner}.
        path (str): "fx", "fall-back", or "float" where neither computes what the original does.
        reason (str | None): why it is not "fx".
        graphs (dict): call key -> graphs, latest first.
        frozen (dict): call key -> the one graph to run for such calls; empty where it is not frozen.
    """

    children: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    operands: dict[str, dict] = field(default_factory=dict)
    path: str = "fx"
    reason: str | None = None
    graphs: dict[tuple, list[Rewritten]] = field(default_factory=dict)
    frozen: dict[tuple, Rewritten] = field(default_factory=dict)

    def __deepcopy__(self, memo):
        graphs = {key: list(found) for key, found in self.graphs.items()}
        return Capture(**copy.deepcopy(self.record()), graphs=graphs, frozen=dict(self.frozen))

    def record(self) -> dict:
        """The part that goes into a checkpoint, as plain data; graphs are traced again."""
        return {
            "children": self.children,
            "left": self.left,
            "operands": self.operands,
            "path": self.path,
            "reason": self.reason,
        }

    def __getstate__(self):
        return self.record()

    def __setstate__(self, state):
        self.__init__(**state)


class OwnerMixin:
    """Put in front of an owner's class by `make_owner_`; the state is in `_capture`."""

    def forward(self, *args, **kwargs):
        capture = self._capture
        if capture.frozen:
            leaves, key = flatten(args, kwargs)
            if key not in capture.frozen:
                raise CaptureError(f"{type(self).__name__} is frozen for calls of another kind")
            return capture.frozen[key](self, leaves)
        if capture.path == "fx":
            try:
                leaves, key = flatten(args, kwargs)
                return _dispatch(self, leaves, key, args, kwargs)
            except TraceFailed as error:
                _fall_back(self, str(error), args, kwargs)
        if capture.path == "float":
            return original_forward(self)(self, *args, **kwargs)
        mode = Interception(self, self._modules.get)
        with mode:
            out = original_forward(self)(self, *args, **kwargs)
        _warn_unwrapped(self, mode.call.unwrapped)
        return out

    def _apply(self, fn, recurse=True):
        self._capture.graphs.clear()  # dtypes and devices are constants of a graph
        return super()._apply(fn, recurse)


def original_forward(owner: nn.Module):
    """The unbound forward the owner had before."""
    return super(OwnerMixin, owner).forward.__func__


def make_owner_(module: nn.Module, capture: Capture) -> nn.Module:
    """Give `module` the owner's forward; its children are in place."""
    mutate_class_(module, OwnerMixin)
    module.__dict__["_capture"] = capture
    return module


def unmake_owner_(module: nn.Module):
    """Take the owner's forward and its children away."""
    for name in module.__dict__.pop("_capture").children:
        module._modules.pop(name, None)
    restore_class_(module)


def _device(leaves) -> str:
    for x in leaves:
        if isinstance(x, torch.Tensor):
            return x.device.type
    return "cpu"


def _dispatch(owner, leaves, key, args, kwargs):
    """Run the graph that fits this call; trace it where there is none yet."""
    capture, device = owner._capture, _device(leaves)
    key = (owner.training, context(device), key)
    found = capture.graphs.get(key, ())
    for graph in found:
        if not graph.guarded:
            return graph(owner, leaves)
        state = torch.get_rng_state() if owner.training else None
        try:
            return graph(owner, leaves)
        except GuardFailed:
            if state is not None:  # what ran before the guard must not have drawn
                torch.set_rng_state(state)
    if torch.compiler.is_compiling():
        raise CaptureError("no graph fits this call: run it once eagerly, or use freeze_, before compiling")
    with tracer.lock:
        if capture.graphs.get(key, ()) is not found:  # another thread was faster
            return _dispatch(owner, leaves, key[-1], args, kwargs)
        if len(found) >= GRAPHS_A_KEY or len(capture.graphs) >= KEYS:
            raise TraceFailed("it needs too many graphs")
        graph = rewrite(owner, original_forward(owner), args, kwargs, device)
        _warn_unwrapped(owner, graph.unwrapped)
        capture.graphs[key] = [graph, *found]
    return graph(owner, leaves)


def _warn_unwrapped(owner, names):
    capture = owner._capture
    new = [name for name in names if name not in capture.left]
    if new:
        warnings.warn(
            f"{type(owner).__name__} takes a path the example inputs did not show: {', '.join(new)} stays in float",
            stacklevel=2,
        )


def _fall_back(owner, reason, args, kwargs):
    """Switch an owner to interception where that is shown to compute what the original does, else to the original."""
    capture, modes = owner._capture, []
    capture.path, capture.reason = "fall-back", reason
    capture.graphs.clear()

    forward = original_forward(owner)

    def checked(module, *args, **kwargs):
        modes.append(Interception(module, module._modules.get, check=True))
        with modes[-1]:
            return forward(module, *args, **kwargs)

    try:
        expected = trial(owner, comparable(owner, forward), args, kwargs)
    except Exception:
        return  # not for this to judge: the call itself is made next
    try:
        compare(expected, trial(owner, checked, args, kwargs), modes[0].call.eps)
    except Exception as error:
        capture.path, capture.reason = "float", f"{reason}; interception: {error}"
        warnings.warn(f"{type(owner).__name__} stays in float: {capture.reason}", stacklevel=2)
