"""The activation binarizer: learnable scale, learnable per-channel shift, calibration state in a buffer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .elastic import NAN_MESSAGE, effective_scale, signed_levels, unit_levels
from .state import OptionalState


class ElasticBinarizer(OptionalState):
    """Binarizes an activation to {-1, +1} (``signed``) or {0, 1} (``unit``).

    Args:
        levels: ``"signed"`` or ``"unit"``.
        channels: length of the last dimension, for a learnable shift per channel; None for no shift.
        smooth: the smooth straight-through slope instead of the window (signed only).
        init: initial scale in units of ``mean|x|``; BiT uses 2 for signed and 4 for unit (bit.md 1.2).

    State: ``alpha`` (scalar), ``shift`` (channels or absent), ``observed`` (float64 [sum of |x|, count], filled by
    ``calibrate_``; count 0 means never calibrated).
    """

    def __init__(
        self,
        levels: str,
        channels: int | None = None,
        *,
        smooth: bool = False,
        init: float = 2.0,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.levels, self.smooth, self.init = levels, smooth, init
        self.alpha = nn.Parameter(torch.ones((), device=device))
        self.shift = None if channels is None else nn.Parameter(torch.zeros(channels, device=device))
        self.register_buffer("observed", torch.zeros(2, dtype=torch.float64, device=device))
        self.observing = False
        self.valid: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` of any shape and float dtype -> (levels fp32 of that shape, scale fp32 scalar). NaN raises."""
        x = x.float()
        torch._assert_async(~torch.isnan(x).any(), NAN_MESSAGE)
        alpha = self.alpha_for(x)
        shift = self.shift if self.shift is not None else x.new_zeros(())
        if self.levels == "signed":
            return signed_levels(x, shift, alpha, smooth=self.smooth), alpha
        return unit_levels(x, shift, alpha), alpha

    def alpha_for(self, x: Tensor) -> Tensor:
        """fp32 scalar: the scale for this input, with its gradient scaled by the input's size; calibrates first
        while ``calibrate_`` runs."""
        if self.observing:
            self._observe(x.detach())
        return effective_scale(self.alpha, x.numel())

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        z = (x if self.shift is None else x + self.shift).abs()
        values = _valid_tokens(z, self.valid)
        self.observed += torch.stack([values.sum(dtype=torch.float64), self.observed.new_tensor(values.numel())])
        self.alpha.copy_(self.observed[0] / self.observed[1].clamp(min=1) * self.init)

    @torch.no_grad()
    def threshold(self) -> Tensor:
        """fp32 [channels] or [1]: the value an input is compared with, ``>=`` if signed, ``>`` if unit (contract 3)."""
        shift = self.shift if self.shift is not None else self.alpha.new_zeros(1)
        return (-shift if self.levels == "signed" else effective_scale(self.alpha, 1) / 2 - shift).detach().float()

    @torch.no_grad()
    def scale(self) -> Tensor:
        """fp32 scalar: the scale the forward uses."""
        return effective_scale(self.alpha, 1).detach().float()

    def extra_repr(self) -> str:
        return f"{self.levels}, shift={self.shift is not None}"


def _valid_tokens(z: Tensor, valid: Tensor | None) -> Tensor:
    """The elements of z, (batch, time, channels) or (batch, heads, time, channels), at valid (batch, time) tokens."""
    tokens = z.transpose(1, 2) if z.ndim == 4 else z
    return tokens[valid] if valid is not None and tokens.shape[:2] == valid.shape else z
