"""HuBERT with its head: the loss of masked prediction (hubert.md 1.6)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import HubertConfig, load_config
from .head import HubertHead
from .model import Hubert, HubertOutput
from .norms import wide

FEATURE_PENALTY = 10.0


class PretrainingOutput(NamedTuple):
    """
    Args:
        loss: scalar, sum over masked frames in nats, with the feature penalty; divide it by ``masked``.
        masked: int, masked frames that carry loss, over all label sets.
        correct: int, of these, how many are predicted right.
        penalty: scalar, mean squared feature.
    """

    loss: Tensor
    masked: Tensor
    correct: Tensor
    penalty: Tensor


class HubertForPretraining(nn.Module):
    """The trunk and its head. Without labels it returns what the trunk returns."""

    def __init__(self, config: HubertConfig):
        super().__init__()
        self.config, self.hubert = config, Hubert(config)
        self.head = HubertHead(config.dim, config.final_dim, config.classes)

    @classmethod
    def from_preset(cls, name: str | Path, **overrides) -> HubertForPretraining:
        return cls(load_config(name, **overrides))

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, mask: Tensor | None = None,
                labels: tuple[Tensor, ...] | None = None) -> HubertOutput | PretrainingOutput:
        """
        Args:
            input_values, attention_mask, mask: as for ``Hubert``.
            labels: int64 (B, T) for each label set.

        Raises:
            ValueError: labels without a mask, or not as many as label sets.
        """
        if labels is None:
            return self.hubert(input_values, attention_mask, mask)
        if mask is None or len(labels) != len(self.config.classes):
            raise ValueError(f"masked prediction needs a mask and {len(self.config.classes)} label set(s)")
        features, valid = self.hubert.extract(input_values, attention_mask)
        penalty = _mean_square(features, valid)
        output = self.hubert.encode(_scale_gradient(features, self.config.feature_grad_scale), valid, mask)
        chosen = mask if valid is None else mask & valid
        with torch.autocast(features.device.type, enabled=False):  # the cosines need fp32
            logits = self.head(wide(output.last_hidden_state[chosen]))
        targets = [label[chosen] for label in labels]
        pairs = list(zip(logits, targets, strict=True))
        masked = sum(target.numel() for target in targets)
        loss = sum(F.cross_entropy(predicted, target, reduction="sum") for predicted, target in pairs)
        correct = sum((predicted.argmax(-1) == target).sum() for predicted, target in pairs)
        loss = loss + FEATURE_PENALTY * penalty * masked
        return PretrainingOutput(loss, torch.tensor(masked), correct, penalty)


def _mean_square(features: Tensor, valid: Tensor | None) -> Tensor:
    squares = features.float().square().mean(-1)
    return squares.mean() if valid is None else (squares * valid).sum() / valid.sum().clamp(min=1)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x unchanged, its gradient multiplied by ``factor``."""
    return _ScaleGradient.apply(x, factor)
