"""Casts of a packed model: only to dtypes that hold every value of the float weights that it was packed from."""

from __future__ import annotations

import torch
from torch import nn

from bitquant.capture import mutate_class_
from bitquant.quantizers import FixedDtype


class PackedTensor(FixedDtype):
    """A layer whose float weight, of ``dtype``, is gone.

    ``least``: the dtype that its bits and scales were decided in. In a narrower one a student's weights, rounded, have
    other means and signs, which a packed layer can no longer know.
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = self.least = dtype

    def check_cast(self, fn) -> None:
        """ValueError where ``fn``, as of ``nn.Module._apply``, casts to a narrower dtype."""
        dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        if torch.promote_types(dtype, self.least) != dtype:
            raise ValueError(
                f"a model packed from {self.least} weights cannot be cast to {dtype}, where its student would have "
                "other bits: cast the student before convert_, or run the packed model under torch.autocast"
            )

    def _apply(self, fn, recurse=True):
        self.check_cast(fn)
        return super()._apply(fn, recurse)


class PackedModel:
    """Put in front of a packed model's class, so that a cast is refused before any part of it is cast."""

    def _apply(self, fn, recurse=True):
        for module in self.modules():
            if isinstance(module, PackedTensor):
                module.check_cast(fn)
        return super()._apply(fn, recurse)


def guard_casts_(model: nn.Module) -> None:
    """Refuse casts that would make a packed model differ from its student, in place."""
    if any(isinstance(module, PackedTensor) for module in model.modules()):
        mutate_class_(model, PackedModel, name=type(model).__name__)
