"""The activation quantizer: learnable scale, learnable per-channel shift, calibration state in a buffer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant.masks import valid_tokens

from .elastic import check_numbers, effective_scale, signed_levels, unit_levels
from .integer import FLOAT_BITS, integer_levels, level_range
from .state import OptionalState


class ActivationQuantizer(OptionalState):
    """Quantizes an activation to ``alpha * level``: {-1, +1} or {0, 1} at 1 bit, LSQ levels at 2, 4 and 8 bits.

    Args:
        levels: ``"signed"``, or ``"unit"`` for inputs that are never negative.
        channels: length of the last dimension, for a learnable shift per channel; None for no shift.
        bits: 1, 2, 4, 8, or 32, which passes the float through.
        smooth: the smooth straight-through slope instead of the window (signed, 1 bit).
        init: initial scale in units of ``mean|x| / sqrt(highest level)``; BiT uses 2 for signed and 4 for unit
            (bit.md 1.2).

    State: ``alpha`` (scalar), ``shift`` (channels or absent), ``observed`` (float64 [sum of |x|, count], filled by
    ``calibrate_``; count 0 means never calibrated).
    """

    def __init__(
        self,
        levels: str,
        channels: int | None = None,
        *,
        bits: int = 1,
        smooth: bool = False,
        init: float = 2.0,
        device: torch.device | None = None,
    ):
        super().__init__()
        self.levels, self.bits, self.smooth, self.init = levels, bits, smooth, init
        self.alpha = nn.Parameter(torch.ones((), dtype=torch.float32, device=device))
        shift = None if channels is None else torch.zeros(channels, dtype=torch.float32, device=device)
        self.shift = None if shift is None else nn.Parameter(shift)
        self.register_buffer("observed", torch.zeros(2, dtype=torch.float64, device=device))
        self.observing = False
        self.valid: Tensor | None = None

    @property
    def range(self) -> tuple[int, int]:
        """(lowest, highest) level."""
        return level_range(self.levels, self.bits)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` of any shape and float dtype -> (levels fp32 of that shape, scale fp32 scalar). NaN raises."""
        x = x.float()
        alpha = self.alpha_for(x)
        if self.bits == FLOAT_BITS:
            check_numbers(x)
            return x, alpha
        shift = self.shift if self.shift is not None else x.new_zeros(())
        if self.bits > 1:
            return integer_levels(x, shift, alpha, *self.range), alpha
        if self.levels == "signed":
            return signed_levels(x, shift, alpha, smooth=self.smooth), alpha
        return unit_levels(x, shift, alpha), alpha

    def alpha_for(self, x: Tensor) -> Tensor:
        """fp32 scalar: the scale for this input, its gradient scaled by ``1 / sqrt(elements * highest level)``;
        calibrates first while ``calibrate_`` runs."""
        if self.observing:
            self._observe(x.detach())
        if self.bits == FLOAT_BITS:
            return torch.ones_like(self.alpha)
        return effective_scale(self.alpha, x.numel() * self.range[1])

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        check_numbers(x)
        z = (x if self.shift is None else x + self.shift).abs()
        values = valid_tokens(z, self.valid)
        self.observed += torch.stack([values.sum(dtype=torch.float64), self.observed.new_tensor(values.numel())])
        self._start()

    def _start(self) -> None:
        mean = self.observed[0] / self.observed[1].clamp(min=1)
        if not bool(torch.isfinite(mean)):
            raise ValueError("a layer is given infinity: calibration needs finite numbers")
        self.alpha.copy_(mean * self.init / self.range[1] ** 0.5)

    @torch.no_grad()
    def set_bits(self, bits: int) -> None:
        """Change the width in place. The scale is inherited, as in BiT (bit.md 5.1); from 32 bits, where there is none,
        it starts from what was observed. Calibrate again for a fresh start."""
        before, self.bits = self.bits, bits
        if before == FLOAT_BITS != bits:
            self._start()

    @torch.no_grad()
    def forget(self) -> None:
        """Drop what was observed, so that the next calibration starts afresh."""
        self.observed.zero_()

    @torch.no_grad()
    def threshold(self) -> Tensor:
        """fp32 [channels] or [1]: what a 1-bit input is compared with, ``>=`` if signed, ``>`` if unit (contract 3)."""
        shift = self.shift if self.shift is not None else self.alpha.new_zeros(1)
        return (-shift if self.levels == "signed" else effective_scale(self.alpha, 1) / 2 - shift).detach().float()

    @torch.no_grad()
    def scale(self) -> Tensor:
        """fp32 scalar: the scale the forward uses."""
        if self.bits == FLOAT_BITS:
            return torch.ones_like(self.alpha)
        return effective_scale(self.alpha, 1).detach().float()

    def extra_repr(self) -> str:
        return f"{self.levels}, bits={self.bits}, shift={self.shift is not None}"
