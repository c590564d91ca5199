"""Grouped 1-d convolutions, such as the positional one of speech encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitquant.capture import mutate_class_, original_class

from .onednn import Prepared, convolution, inference_on_cpu


class OrderedConv1d:
    """Put in front of ``nn.Conv1d``: weight norm is computed once, not per call, and the weight has oneDNN's order."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or not inference_on_cpu(self, x):
            return super().forward(x)
        run = self.__dict__["_ordered"].get(tuple(self.parameters()), self, tuple(x.shape))
        return run(x.to(self._dtype)).float()


def unsupported(conv: nn.Module) -> str | None:
    """Why a module is not to be replaced, or None."""
    if original_class(conv) is not nn.Conv1d and not _is_parametrized_conv1d(conv):
        return "not a float Conv1d"
    if not 1 < conv.groups < conv.in_channels:
        return "not grouped"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"padding {conv.padding_mode if conv.padding_mode != 'zeros' else conv.padding!r}"
    return None if all(p.dtype == torch.float32 for p in conv.parameters()) else "not float32"


def replace_(conv: nn.Module, dtype: torch.dtype) -> None:
    mutate_class_(conv, OrderedConv1d, name="OrderedConv1d")
    conv.__dict__["_dtype"], conv.__dict__["_ordered"] = dtype, Prepared(_make)


def _is_parametrized_conv1d(conv: nn.Module) -> bool:
    return parametrize.is_parametrized(conv) and type(conv).__bases__[0] is nn.Conv1d


def _make(conv: nn.Module, size: tuple[int, ...]):
    bias = None if conv.bias is None else conv.bias.detach().to(conv._dtype)
    return convolution(
        conv.weight.detach().to(conv._dtype),
        bias,
        padding=conv.padding[0],
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        groups=conv.groups,
        size=size,
    )
