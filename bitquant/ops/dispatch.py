"""Which implementation runs an op on the CPU, and why the others do not (contract 6)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

from . import naive, native

NAMES = ("native", "naive")


class Backend(NamedTuple):
    """One way to run the ops. ``reason`` says why it is not available, or what it runs on where it is."""

    name: str
    available: bool
    reason: str


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run here; the message says why."""


_forced: ContextVar[ModuleType | None] = ContextVar("bitquant_backend", default=None)
_automatic: ModuleType | None = None


def backends() -> list[Backend]:
    """Every backend in order of preference, with its state on this machine."""
    reason = native.unavailable_reason()
    detail = reason or f"instruction set {native.instruction_set()} of {', '.join(native.instruction_sets())}"
    return [Backend("native", reason is None, detail), Backend("naive", True, "plain torch, any device")]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the CPU ops of this thread on one backend. ValueError: unknown name. BackendUnavailable: it cannot run."""
    token = _forced.set(_by_name(name))
    try:
        yield
    finally:
        _forced.reset(token)


def current() -> ModuleType:
    """The module that runs the next CPU op: ``use_backend``, else ``BITQUANT_BACKEND``, else native, else naive.

    The environment is read once, by the first op.
    """
    return _forced.get() or _automatic or _choose()


def _choose() -> ModuleType:
    global _automatic
    # An instruction set asked for by name is not to be lost in a fall-back.
    name = os.environ.get("BITQUANT_BACKEND") or ("native" if os.environ.get("BITQUANT_ISA") else None)
    _automatic = _by_name(name) if name else (naive if native.unavailable_reason() else native)
    return _automatic


def _by_name(name: str) -> ModuleType:
    if name == "naive":
        return naive
    if name != "native":
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(NAMES)}")
    if reason := native.unavailable_reason():
        raise BackendUnavailable(f"backend 'native' cannot run: {reason}")
    return native
