"""Running a model the way torch's exporter runs it: models ask whether they are traced, and take other paths then."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import nn

from bitquant.capture import owners

FLAGS = ("_is_compiling_flag", "_is_exporting_flag")  # what torch.export sets


@contextmanager
def as_exported(model: nn.Module) -> Iterator[None]:
    """Within, ``torch.compiler.is_exporting()`` is true for the model's own code, as it is during an export, so that
    for one a mask which masks nothing is still made; rewritten modules are traced as ever."""
    before = {flag: getattr(torch.compiler, flag) for flag in FLAGS}

    def inside(module, args):
        _set(before)

    def outside(module, args, output):
        _set(dict.fromkeys(FLAGS, True))

    hooks = []
    for path in owners(model):
        owner = model.get_submodule(path)
        hooks += [owner.register_forward_pre_hook(inside), owner.register_forward_hook(outside)]
    try:
        _set(dict.fromkeys(FLAGS, True))
        yield
    finally:
        _set(before)
        for hook in hooks:
            hook.remove()


def _set(flags: dict[str, bool]) -> None:
    for flag, value in flags.items():
        setattr(torch.compiler, flag, value)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print and log about themselves, such as whole graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
