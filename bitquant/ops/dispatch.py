"""Which implementation runs an op on a device, and why the others do not (contract 6)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

import torch

from . import library, naive, native
from .triton import device as gpu

NAMES = ("native", "triton", "naive")


class Backend(NamedTuple):
    """One way to run the ops. ``reason`` says why it is not available, or what it runs on where it is; ``devices``:
    types of the tensors it serves."""

    name: str
    available: bool
    reason: str
    devices: tuple[str, ...]


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run here; the message says why."""


_forced: ContextVar[str | None] = ContextVar("bitquant_backend", default=None)
_automatic: dict[str, ModuleType] = {}
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    _automatic.clear()  # so that the next op comes by _by_name


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def backends() -> list[Backend]:
    """Every backend in order of preference, with its state on this machine."""
    reason, gpu_reason = library.unavailable_reason(), gpu.unavailable_reason()
    detail = reason or f"instruction set {library.instruction_set()} of {', '.join(library.instruction_sets())}"
    return [
        Backend("native", reason is None, detail, ("cpu",)),
        Backend(
            "triton", gpu_reason is None, gpu_reason or gpu.summary(), ("cpu",) if gpu.interpreted() else ("cuda",)
        ),
        Backend("naive", True, "plain torch, any device", ("cpu", "cuda")),
    ]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the ops of this thread on one backend, whose devices their tensors must be on.

    Raises:
        ValueError: unknown name. BackendUnavailable: it cannot run, or (from the op) not on the tensor's device.
    """
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    if problem := _problem(name):
        raise BackendUnavailable(problem)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def current(device: str = "cpu") -> ModuleType:
    """The module that runs the next op on tensors of a device type, "cpu" or "cuda".

    ``use_backend``, else ``BITQUANT_BACKEND``, else native on the CPU and triton on a GPU, else naive. The environment
    is read once for each type, by the first op.
    """
    if name := _forced.get():
        return _by_name(name, device)
    return _automatic.get(device) or _choose(device)


def _choose(device: str) -> ModuleType:
    name = os.environ.get("BITQUANT_BACKEND")
    if not name and device == "cpu" and os.environ.get("BITQUANT_ISA"):
        name = "native"  # an instruction set asked for by name is not to be lost in a fall-back
    if not name:
        best = "triton" if device == "cuda" else "native"
        name = "naive" if _problem(best) else best
    _automatic[device] = _by_name(name, device)
    return _automatic[device]


def _problem(name: str) -> str | None:
    """Why a backend cannot run here, or None."""
    reasons = {"native": library.unavailable_reason, "triton": gpu.unavailable_reason}
    reason = reasons[name]() if name in reasons else None
    return f"backend {name!r} cannot run: {reason}" if reason else None


def _use_one_thread() -> None:
    """OpenMP's threads do not survive a fork: a call, ours or torch's, that hands work to them never returns."""
    global _forked
    _forked = False
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            "this process was forked, so torch and bitquant run on one thread here: start it by spawn to use more",
            stacklevel=2,
        )


def _by_name(name: str, device: str) -> ModuleType:
    if _forked and device == "cpu":
        _use_one_thread()
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    if problem := _problem(name):
        raise BackendUnavailable(problem)
    if name == "naive":
        return naive
    if name == "native" and device == "cpu":
        return native
    if name == "triton" and (device == "cuda" or gpu.interpreted()):
        from .triton import operators  # not before it is needed: it imports triton

        return operators
    raise BackendUnavailable(f"backend {name!r} does not serve tensors on {device}")
