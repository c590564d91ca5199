"""The weight quantizer: ``W ~ s * sign(W - mu)`` with a mean-magnitude or learnable scale; tables may be wider."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .integer import FLOAT_BITS
from .state import OptionalState

SCALE_FLOOR = 1e-8
ROWS = 4096  # of a table that are in floats at a time
# Half the step between levels that fits a Gaussian's values best (Max, 1960), in units of their mean magnitude, by bits
BEST_SCALE = {1: 1.0, 2: 0.6240, 4: 0.2101, 8: 0.01934}


class WeightLevels(torch.autograd.Function):
    """``+1`` where ``weight >= mean``, else ``-1``. The gradient of ``s * level`` goes straight to the weight,
    unclipped (bit.md section 3), so the gradient of the level is divided by ``s``."""

    @staticmethod
    def forward(ctx, weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return (weight >= mean).to(weight.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx, grad):
        (scale,) = ctx.saved_tensors
        return grad / scale, None, None


def odd_levels(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest odd integer to ``weight / scale``, from ``1 - 2^bits`` to ``2^bits - 1``; at 1 bit that is the sign.

    The gradient passes within that range, as that of LSQ; ``scale`` broadcasts against ``weight``.
    """
    highest = 2**bits - 1
    ratio = (weight / scale).clamp(-highest, highest)
    with torch.no_grad():
        levels = (2 * torch.floor(ratio / 2) + 1).clamp_(max=highest)
    return levels + (ratio - ratio.detach())  # the levels exactly


def weight_mean(weight: Tensor, center: str) -> Tensor:
    """fp32, what is subtracted before the sign: zero, the global mean, or the mean of each row (output channel)."""
    weight = weight.float()
    if center == "none":
        return weight.new_zeros(())
    if center == "tensor":
        return weight.mean()
    return weight.flatten(1).mean(1).view(-1, *[1] * (weight.ndim - 1))


def mean_magnitude(weight: Tensor, granularity: str) -> Tensor:
    """``mean|W|`` of the uncentred weight: fp32 [1] or [rows], floored so that it is positive."""
    magnitude = weight.float().abs()
    mean = magnitude.mean().view(1) if granularity == "tensor" else magnitude.flatten(1).mean(1)
    return mean.clamp(min=SCALE_FLOOR)


class WeightQuantizer(OptionalState):
    """Quantizes a weight of shape (rows, ...) to levels {-1, +1} and a positive scale per tensor or per row; with 2, 4
    or 8 bits, to odd levels from ``1 - 2^bits`` to ``2^bits - 1``.

    Args:
        weight: the trained weight; a learnable scale starts from its mean magnitude.
        granularity: ``"tensor"`` or ``"row"``.
        learnable: ``s = s_init * exp(r)`` with ``r`` trained; otherwise ``mean|W|`` anew at every step, a constant in
            the gradient; either times ``BEST_SCALE``.
        center: what is subtracted before the sign, at 1 bit: ``"none"``, ``"tensor"`` or ``"row"``.
        bits: 1; 2, 4 or 8, for embedding tables; or 32, which passes the float weight through with scale 1.
    """

    def __init__(self, weight: Tensor, *, granularity: str, learnable: bool, center: str, bits: int = 1):
        super().__init__()
        self.granularity, self.learnable, self.center, self.bits = granularity, learnable, center, bits
        if learnable:
            scale = mean_magnitude(weight.detach(), granularity)
            self.register_buffer("scale_init", scale)
            self.log_ratio = nn.Parameter(torch.zeros_like(scale))

    def scale(self, weight: Tensor) -> Tensor:
        """fp32 [1] or [rows], positive."""
        if self.bits == FLOAT_BITS:
            return weight.new_ones(1, dtype=torch.float32)
        if self.learnable:
            if self.granularity == "row" and weight.shape[0] != self.scale_init.shape[0]:
                raise ValueError(
                    f"a weight of {weight.shape[0]} rows has {self.scale_init.shape[0]} scales: resize it in the float "
                    "model, before quantize_"
                )
            return self.scale_init * torch.exp(self.log_ratio) * BEST_SCALE[self.bits]
        return mean_magnitude(weight.detach(), self.granularity) * BEST_SCALE[self.bits]

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """weight (rows, ...) -> (levels fp32 of that shape, scale fp32 [1] or [rows])."""
        weight = weight.float()
        scale = self.scale(weight)
        if self.bits == FLOAT_BITS:
            return weight, scale
        spread = scale.detach().view(-1, *[1] * (weight.ndim - 1))
        return WeightLevels.apply(weight, weight_mean(weight.detach(), self.center), spread), scale

    @torch.no_grad()
    def signs(self, weight: Tensor) -> Tensor:
        """bool of weight's shape: what is packed of a 1-bit weight."""
        weight = weight.float()
        return weight >= weight_mean(weight, self.center)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """uint8 of weight's shape, (rows, columns), of finite numbers: 0 for the lowest level, ``2^bits - 1`` for the
        highest."""
        if self.bits == 1:
            return self.signs(weight).to(torch.uint8)
        codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        scale = self.scale(weight).view(-1, 1)
        for rows, part, factor in zip(*(x.split(ROWS) for x in (codes, weight, scale)), strict=True):
            rows.copy_((odd_levels(part.float(), factor, self.bits) + (2**self.bits - 1)) / 2)
        return codes

    @torch.no_grad()
    def reset(self, weight: Tensor) -> None:
        """Start the learnable scale again from a weight that was just loaded."""
        if self.learnable:
            self.scale_init.copy_(mean_magnitude(weight, self.granularity))
            self.log_ratio.zero_()

    def extra_repr(self) -> str:
        return f"bits={self.bits}, {self.granularity}, learnable={self.learnable}, center={self.center}"
