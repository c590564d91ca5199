"""Where the current backend has kernels for the quantizers' own forward and backward: on GPUs."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from bitquant.ops import dispatch


def kernels_for(x: Tensor, shift: Tensor, alpha: Tensor) -> ModuleType | None:
    """``bitquant.ops.triton.elastic`` where it serves these tensors; None where plain torch does, which a compiler
    fuses by itself."""
    if torch.compiler.is_compiling() or x.device.type not in ("cpu", "cuda"):
        return None
    kernels = getattr(dispatch.current(x.device.type), "elastic", None)
    return kernels if kernels and kernels.serves(x, shift, alpha) else None
