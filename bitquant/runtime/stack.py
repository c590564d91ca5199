"""A stack of convolutions over a waveform as matrix products: channels last, in pieces of time that stay in cache.

A window of k frames of C channels is one row of k * C numbers, so a convolution is a product with no transpose around
it; where k equals the stride the rows are the input as it lies. The norm over time behind the first convolution needs
no pass over its output: mean and variance of ``w . window`` follow from the moments of the windows (fp64), so that it
becomes part of the first weight.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitquant.capture import original_class

from .onednn import linear

PIECE = 1 << 22  # values of the widest activation of a piece: 16 MB in fp32


class Step(NamedTuple):
    """A convolution, what normalises its output (or None) and the activation behind it."""

    conv: nn.Module
    norm: nn.Module | None
    act: nn.Module


def unsupported(steps: list[Step]) -> str | None:
    """Why a stack cannot be run as products, or None."""
    for index, (conv, norm, act) in enumerate(steps):
        if original_class(conv) is not nn.Conv1d or parametrize.is_parametrized(conv):
            return f"convolution {index} is not a float Conv1d"
        if conv.groups != 1 or conv.dilation != (1,) or conv.padding != (0,):
            return f"convolution {index} is grouped, dilated or padded"
        if conv.weight.dtype != torch.float32:
            return f"convolution {index} is not float32"
        if isinstance(norm, nn.GroupNorm) and (index or conv.in_channels != 1 or norm.num_groups != conv.out_channels):
            return f"norm {index} is not one per channel behind the first convolution"
        if not (norm is None or isinstance(norm, nn.GroupNorm) or type(norm) is nn.LayerNorm):
            return f"norm {index} is a {type(norm).__name__}"
        sample = torch.linspace(-4, 4, 64)
        if not torch.equal(act(sample), F.gelu(sample)):
            return f"activation {index} is not the exact GELU"
    return None if steps and steps[0].conv.in_channels == 1 else "does not start at one channel"


class Stack:
    """The steps ready to run. ``dtype``: of the products behind the first, which is always fp32."""

    def __init__(self, steps: list[Step], dtype: torch.dtype):
        self.first, self.dtype, self.rest, self.stride, widest = steps[0], dtype, [], 1, 0
        for step in steps:
            conv = step.conv
            (kernel,), (stride,) = conv.kernel_size, conv.stride
            self.stride *= stride
            widest = max(widest, conv.out_channels / self.stride)
            if step is not self.first:
                weight = conv.weight.detach().transpose(1, 2).flatten(1).to(dtype)
                bias = None if conv.bias is None else conv.bias.detach().to(dtype)
                self.rest.append((kernel, stride, linear(weight, bias, gelu=step.norm is None), step.norm))
        self.channels, self.field = conv.out_channels, receptive_field(steps)
        self.piece = max(64, int(PIECE / (widest * self.stride)))

    def __call__(self, wave: Tensor, valid: Tensor | None = None) -> Tensor:
        """wave fp32 (B, N) -> fp32 (B, T, C). valid int (B,): how many outputs of the first convolution its norm over
        time counts; None for all."""
        frames = (wave.shape[1] - self.field) // self.stride + 1
        out = torch.empty(wave.shape[0], frames, self.channels, dtype=torch.float32)
        for index, samples in enumerate(wave.contiguous()):
            weight, bias = self._first(samples, None if valid is None else int(valid[index]))
            for start in range(0, frames, self.piece):
                stop = min(start + self.piece, frames)
                x = samples[start * self.stride : (stop - 1) * self.stride + self.field]
                out[index, start:stop] = self._run(x, weight, bias)
        return out

    def _first(self, samples: Tensor, valid: int | None) -> tuple[Tensor, Tensor | None]:
        """The first weight and bias, with the norm over time of this waveform in them."""
        conv, norm, _ = self.first
        weight = conv.weight.detach().flatten(1)
        if not isinstance(norm, nn.GroupNorm):
            return weight, conv.bias
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        count = (samples.shape[0] - kernel) // stride + 1 if valid is None else max(valid, 1)
        windows = samples.double().as_strided((count, kernel), (stride, 1))
        mean = windows.mean(0)
        windows = windows - mean
        wide = weight.double()
        variance = ((wide @ (windows.T @ windows / count)) * wide).sum(1)
        scale = torch.rsqrt(variance + norm.eps)
        if norm.affine:
            scale = scale * norm.weight
        bias = -(wide @ mean) * scale  # a bias of the convolution itself would cancel
        return (wide * scale[:, None]).float(), (bias + norm.bias if norm.affine else bias).float()

    def _run(self, samples: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv, norm, _ = self.first
        x = F.linear(_windows(samples[:, None], conv.kernel_size[0], conv.stride[0]), weight, bias)
        x = torch.ops.aten.gelu_(_normalised(x, norm)).to(self.dtype)
        for kernel, stride, product, norm in self.rest:
            x = product(_windows(x, kernel, stride))
            if norm is not None:
                x = torch.ops.aten.gelu_(_normalised(x, norm))
        return x


def _normalised(x: Tensor, norm: nn.Module | None) -> Tensor:
    if not isinstance(norm, nn.LayerNorm):
        return x
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(x.dtype)


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """x (T, C) contiguous -> contiguous (windows, kernel * C), a view where they do not overlap."""
    channels, count = x.shape[1], (x.shape[0] - kernel) // stride + 1
    return x.as_strided((count, kernel * channels), (stride * channels, 1)).contiguous()


def receptive_field(steps: list[Step]) -> int:
    """Samples that one frame is made of."""
    field, stride = 1, 1
    for step in steps:
        field += (step.conv.kernel_size[0] - 1) * stride
        stride *= math.prod(step.conv.stride)
    return field
