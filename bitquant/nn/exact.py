"""Integer products in float: exact, then scaled once (contract 1)."""

import torch
from torch import Tensor


def exact(x: Tensor) -> torch.autocast:
    """Context in which products of levels are exact: autocast off, since bf16 sums are exact only up to 256."""
    return torch.autocast(x.device.type, enabled=False)


def scaled(product: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``fl(fl(product * scale) + bias)``: the one place where scales meet an integer product."""
    out = product * scale
    return out if bias is None else out + bias.float()
