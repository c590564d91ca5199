"""Which keys a query takes: the two rules of binary attention, on integers where possible (contract 4).

The forward decides by the integer rules of ``bitquant.ops.rules``; the gradient goes through the float softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitquant.config import QuantConfig
from bitquant.nn.activation import activation_quantizer
from bitquant.nn.mask import masked_softmax
from bitquant.ops.rules import row_max_margin, softmax_table, taken_by_row_max, taken_by_table, threshold_ratio
from bitquant.quantizers import OptionalState, unit_levels


@dataclass
class Selected:
    """``levels`` {0, 1} fp32 (..., Tq, Tk), the positive ``factor`` of the sum, and the ``count`` that divides it."""

    levels: Tensor
    factor: Tensor
    count: Tensor | None = None

    def mix(self, value: Tensor) -> Tensor:
        """value levels (..., Tk, dv) -> the sum, or the mean, over the taken keys (..., Tq, dv)."""
        total = self.levels @ value
        return total if self.count is None else total / self.count


class TakenKeys(torch.autograd.Function):
    """Forward: the keys taken, as 0 and 1, and their count. Backward: ``taken / count`` stands for the probability, so
    the gradient of the taken bits times ``count`` goes straight to it."""

    @staticmethod
    def forward(ctx, probability: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        levels = taken.to(probability.dtype)
        count = key_count(levels)
        ctx.save_for_backward(count)
        ctx.mark_non_differentiable(count)
        return levels, count

    @staticmethod
    def backward(ctx, grad, _):
        (count,) = ctx.saved_tensors
        return grad * count, None


def key_count(levels: Tensor) -> Tensor:
    """How many keys a query takes, at least 1: levels {0, 1} (..., Tq, Tk) -> fp32 (..., Tq, 1), exact to 2^24."""
    return levels.sum(-1, keepdim=True, dtype=torch.float32).clamp(min=1)


class RowMaxSelection(OptionalState):
    """bit-plus: every key whose softmax weight is at least ``attention_keep`` of the row's best; their mean, times a
    learnable gain. In integers: ``s_ij >= max_j s_ij - floor(ln(1 / keep) / c)``, independent of length."""

    def __init__(self, config: QuantConfig, *, device: torch.device | None = None):
        super().__init__()
        self.keep = config.attention_keep
        self.log_gain = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))

    def gain(self) -> Tensor:
        """fp32 scalar, positive."""
        return torch.exp(self.log_gain)

    def margin(self, temperature: Tensor) -> Tensor:
        """int64 scalar: how far below the row's best score a key may be."""
        return row_max_margin(temperature.detach(), self.keep)

    def from_scores(
        self, scores: Tensor, head_dim: int, temperature: Tensor, keep: Tensor | None, dropout_p: float
    ) -> Selected:
        """scores: integers in {-head_dim..head_dim} as fp32 (..., Tq, Tk)."""
        if dropout_p:
            return self.from_probability(masked_softmax(scores * temperature, keep), keep, dropout_p)
        taken = taken_by_row_max(scores.detach(), keep, self.margin(temperature))
        if not torch.is_grad_enabled():
            levels = taken.to(scores.dtype)
            return Selected(levels, self.gain(), key_count(levels))
        return self._trained(masked_softmax(scores * temperature, keep), taken)

    def from_probability(self, probability: Tensor, keep: Tensor | None, dropout_p: float) -> Selected:
        probability = F.dropout(probability, dropout_p) if dropout_p else probability
        best = probability.detach().amax(-1, keepdim=True)
        taken = (probability.detach() >= self.keep * best) & (best > 0)  # a row that lost every key takes none
        return self._trained(probability, taken if keep is None else taken & keep)

    def _trained(self, probability: Tensor, taken: Tensor) -> Selected:
        levels, count = TakenKeys.apply(probability, taken)
        return Selected(levels, self.gain(), count)


class ProbabilityLevels(OptionalState):
    """The float softmax quantized to levels times a learnt ``alpha``: at 2, 4 and 8 bits, around a float bias at 1 bit
    too, and passed through at 32."""

    def __init__(self, config: QuantConfig, *, device: torch.device | None = None):
        super().__init__()
        self.probability = activation_quantizer(config, nonnegative=True, device=device)

    def from_scores(
        self, scores: Tensor, head_dim: int, temperature: Tensor, keep: Tensor | None, dropout_p: float
    ) -> Selected:
        """scores: products of levels as fp32 (..., Tq, Tk)."""
        return self.from_probability(masked_softmax(scores * temperature, keep), keep, dropout_p)

    def from_probability(self, probability: Tensor, keep: Tensor | None, dropout_p: float) -> Selected:
        probability = F.dropout(probability, dropout_p) if dropout_p else probability
        levels, alpha = self.probability(probability)
        return Selected(levels if keep is None else levels * keep, alpha)


class TableSelection(ProbabilityLevels):
    """bit-ref: every key whose softmax weight exceeds ``alpha / 2``, the softmax taken from an integer table, so that
    the decision is equal on every backend; the sum over them, times the learnt ``alpha``."""

    def table(self, temperature: Tensor, head_dim: int) -> Tensor:
        """int64 [head_dim + 1]: exponentials below the row's best score, 12 fraction bits."""
        return softmax_table(temperature.detach(), head_dim)

    def ratio(self) -> Tensor:
        """int64 scalar: ``alpha / 2`` in units of 2^-24."""
        return threshold_ratio(self.probability.scale())

    def from_scores(
        self, scores: Tensor, head_dim: int, temperature: Tensor, keep: Tensor | None, dropout_p: float
    ) -> Selected:
        """scores: integers in {-head_dim..head_dim} as fp32 (..., Tq, Tk)."""
        trained = torch.is_grad_enabled() or self.probability.observing
        probability = masked_softmax(scores * temperature, keep) if trained else None
        if trained and dropout_p:
            return self.from_probability(probability, keep, dropout_p)
        alpha = self.probability.alpha_for(probability) if trained else self.probability.scale()
        taken = taken_by_table(scores.detach(), keep, self.table(temperature, head_dim), self.ratio())
        if not trained:
            return Selected(taken.to(scores.dtype), alpha)
        return Selected(unit_levels(probability, alpha.new_zeros(()), alpha, taken), alpha)


def selection(config: QuantConfig, *, device: torch.device | None = None) -> nn.Module:
    """The rule of the configuration: by its ``attention`` at 1 bit, by the quantized softmax at more."""
    if config.activation_bits > 1:
        return ProbabilityLevels(config, device=device)
    rules = {"row-max": RowMaxSelection, "table": TableSelection}
    return rules[config.attention](config, device=device)


def at_bits(current: nn.Module, config: QuantConfig) -> nn.Module:
    """The rule for the width of ``config``, with what ``current`` has learnt or observed of the probabilities."""
    changed = selection(config, device=next(current.parameters()).device)
    if isinstance(current, ProbabilityLevels) and isinstance(changed, ProbabilityLevels):
        changed.probability = current.probability
        changed.probability.set_bits(config.activation_bits)
    return current if type(current) is type(changed) else changed
