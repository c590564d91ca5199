"""Normalisation that keeps two promises: computed at least in fp32 whatever the model's dtype, and blind to padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """x as fp32, or as it is where it has more precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last dimension, computed in fp32; the result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(wide(x), self.normalized_shape, wide(self.weight), wide(self.bias), self.eps).to(x.dtype)


class TimeNorm(nn.GroupNorm):
    """Normalises every channel over time, in fp32: GroupNorm with as many groups as channels (hubert.md 1.2).

    Args:
        masked: leave padded time steps out of the statistics; otherwise they take part, as in the published models,
            and an utterance's features depend on what it is batched with (hubert.md 6).
    """

    def __init__(self, channels: int, *, masked: bool):
        super().__init__(channels, channels)
        self.masked = masked

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, C, T), lengths int (B,) or None -> (B, C, T)."""
        weight, bias = wide(self.weight), wide(self.bias)
        if lengths is None or not self.masked:
            return F.group_norm(wide(x), self.num_groups, weight, bias, self.eps).to(x.dtype)
        valid = (torch.arange(x.shape[-1], device=x.device) < lengths[:, None])[:, None]
        mean, variance = _moments(wide(x), valid, lengths.clamp(min=1)[:, None, None], (-1,))
        return _normalise(x, mean, variance + self.eps, weight, bias)


class BatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` in fp32 whose training statistics, batch and running, leave padded frames out."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, T), valid bool (B, T) or None -> (B, C, T)."""
        weight, bias = wide(self.weight), wide(self.bias)
        if not self.training:
            mean, variance = wide(self.running_mean), wide(self.running_var)
            return F.batch_norm(wide(x), mean, variance, weight, bias, eps=self.eps).to(x.dtype)
        if valid is None:
            valid = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
        count = valid.sum().clamp(min=1)
        mean, variance = _moments(wide(x), valid[:, None], count, (0, 2))
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.flatten().to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1
        return _normalise(x, mean, variance + self.eps, weight, bias)


def _normalise(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ((wide(x) - mean) * torch.rsqrt(variance) * weight[:, None] + bias[:, None]).to(x.dtype)


def _moments(x: Tensor, valid: Tensor, count: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over ``dims`` of the valid elements; two passes, so that no precision is lost."""
    mean = x.masked_fill(~valid, 0.0).sum(dims, keepdim=True) / count
    variance = (x - mean).masked_fill(~valid, 0.0).square().sum(dims, keepdim=True) / count
    return mean, variance
