"""The activation quantizer that a configuration asks for."""

from __future__ import annotations

import torch

from bitquant.config import QuantConfig
from bitquant.quantizers import ActivationQuantizer

UNIT_INIT = 4.0  # BiT's start for inputs that are never negative (bit.md 1.2)


def activation_quantizer(
    config: QuantConfig, *, nonnegative: bool, channels: int | None = None, device: torch.device | None = None
) -> ActivationQuantizer:
    """The unit set for an input that provably never is below 0, else the signed one; ``channels``: a shift for each."""
    return ActivationQuantizer(
        "unit" if nonnegative else "signed",
        channels,
        bits=config.activation_bits,
        smooth=config.ste == "smooth",
        init=UNIT_INIT if nonnegative else config.signed_init,
        device=device,
    )
