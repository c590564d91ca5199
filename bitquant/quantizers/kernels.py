"""Where the current backend has kernels for the quantizers' own forward and backward."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from bitquant.ops import dispatch
from bitquant.ops.direct import is_watched


def kernels_for(x: Tensor, shift: Tensor, alpha: Tensor, *grad: Tensor) -> ModuleType | None:
    """The backend's ``elastic`` where it serves these tensors: fp32 on one device, one scale, one shift or one for each
    channel of the last dimension. None where plain torch does: for all others, where something has to see every
    operation, and in a backward pass that is itself to be differentiated."""
    if torch.is_grad_enabled() or is_watched() or x.device.type not in ("cpu", "cuda"):
        return None
    one_each = x.ndim > 0 and shift.shape == x.shape[-1:]
    served = (
        all(type(t) in (Tensor, nn.Parameter) and torch._C._has_storage(t) for t in (x, shift, alpha, *grad))
        and all(t.dtype == torch.float32 and t.device == x.device for t in (x, shift, alpha, *grad))
        and x.numel() > 0
        and all(t.data_ptr() for t in (x, shift, alpha, *grad))  # a zero tensor has no memory
        and alpha.numel() == 1
        and (shift.numel() == 1 or one_each)
    )
    return getattr(dispatch.current(x.device.type), "elastic", None) if served else None
