"""Models in the wrappers of torch: trained as what is inside, run as it is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module, role: str) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and, in a process alone, ``DistributedDataParallel``: the
    same parameters, run as they are.

    Raises:
        ValueError: a model spread over several processes, which would not tell each other their gradients.
    """
    while True:
        if isinstance(model, _kinds("torch._dynamo.eval_frame", "OptimizedModule")):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            several = isinstance(model, DistributedDataParallel) and model.process_group.size() > 1
            if several and role == "student":
                raise ValueError(
                    "distill trains in one process: give it the model inside DistributedDataParallel, student.module, "
                    "in one of them"
                )
            model = model.module
        elif isinstance(model, _kinds("torch.distributed.fsdp", "FullyShardedDataParallel")):
            raise ValueError(f"the {role} is sharded over processes by FSDP; distill needs it whole, in one process")
        else:
            return model


def _kinds(module: str, name: str) -> tuple[type, ...]:
    """A class of a module that takes long to import, if it was imported; without that nothing is of it."""
    kind = getattr(sys.modules.get(module), name, None)
    return () if kind is None else (kind,)


@contextmanager
def as_written(*models: nn.Module) -> Iterator[None]:
    """Context in which modules compiled in place (``module.compile()``) run as they are written: what was compiled
    passes over the hooks that were added since."""
    modules = [module for model in models for module in model.modules()]
    compiled = [(module, module._compiled_call_impl) for module in modules if module._compiled_call_impl is not None]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
