"""Guards: calls in a graph that hold the value a branch was traced with, and refuse any other."""

from __future__ import annotations

import operator

from .errors import GuardFailed


def guard_bool(value, expected: bool):
    if (not value) if expected else value:  # a branch, not a comparison: symbolic values under torch.compile are fine
        raise GuardFailed


def guard_int(value, expected: int):
    if int(value) != expected:
        raise GuardFailed


def guard_index(value, expected: int):
    if operator.index(value) != expected:
        raise GuardFailed


def guard_float(value, expected: float):
    if float(value) != expected:
        raise GuardFailed


def guard_len(value, expected: int):
    if len(value) != expected:
        raise GuardFailed


def guard_requires_grad(value, expected: bool):
    if value.requires_grad != expected:
        raise GuardFailed


GUARDS = (guard_bool, guard_int, guard_index, guard_float, guard_len, guard_requires_grad)


def is_guard(node) -> bool:
    """Whether a graph node is a guard."""
    return node.op == "call_function" and node.target in GUARDS
