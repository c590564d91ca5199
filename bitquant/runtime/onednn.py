"""Products of a constant weight with one memory layout chosen ahead of time, by oneDNN where torch has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_reorder_convolution_weight")
)


def linear(weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Callable[[Tensor], Tensor]:
    """x (rows, K) contiguous -> ``x @ weight.T + bias``, and the exact GELU of it where ``gelu``, in the dtype of
    ``weight`` (N, K), which x must have."""
    if not AVAILABLE:

        def plain(x):
            out = F.linear(x, weight, bias)
            return torch.ops.aten.gelu_(out) if gelu else out

        return plain
    ordered, then = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), "gelu" if gelu else "none"
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, ordered, bias, then, [], "none")


def convolution(
    weight: Tensor, bias: Tensor | None, *, padding: int, stride: int, dilation: int, groups: int, size: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """x (B, C, T) -> ``conv1d`` in the dtype of ``weight`` (N, C / groups, k), which x must have. ``size``: of a
    typical x, which the layout is chosen for; any other gives the same."""
    if not AVAILABLE:
        return lambda x: F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    geometry = [0, padding], [1, stride], [1, dilation], groups  # an image of one row
    batch, channels, length = size
    ordered = torch.ops.mkldnn._reorder_convolution_weight(
        weight.unsqueeze(2).contiguous(), *geometry, [batch, channels, 1, length]
    )

    def ours(x):
        image = torch.ops.mkldnn._convolution_pointwise(x.unsqueeze(2), ordered, bias, *geometry, "none", [], "none")
        return image.squeeze(2)

    return ours


class Prepared:
    """What was made of some parameters, made again when one of them changes. Copies of a model start without it."""

    def __init__(self, make: Callable[..., Any]):
        self.make, self._key, self._made = make, None, None

    def get(self, tensors: tuple[Tensor, ...], *arguments) -> Any:
        """``make(*arguments)``, or what it gave while ``tensors`` were as they are now."""
        key = tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        if key != self._key:
            with torch.no_grad():
                self._key, self._made = key, self.make(*arguments)
        return self._made

    def __deepcopy__(self, memo) -> Prepared:
        return Prepared(self.make)

    def __reduce__(self):
        return Prepared, (self.make,)


def inference_on_cpu(module: nn.Module, x: Tensor) -> bool:
    """Whether this call may leave torch's own layers: fp32 on the CPU, eval mode, and no gradient is asked for."""
    if module.training or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if type(x) is not Tensor or torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False  # tracing or counting: it wants to see the layers
    if not torch.is_grad_enabled():
        return True
    return not (x.requires_grad or any(p.requires_grad for p in module.parameters()))
