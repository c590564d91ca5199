"""Scale, bias, ReLU and the next layer's threshold folded into one integer a column, exactly."""

from __future__ import annotations

import torch
from torch import Tensor


def integer_limits(
    scale: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    features: int,
    *,
    strict: bool = False,
    relu: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """int32 [N]: the least integer product whose output reaches the next layer's threshold.

    With ``y = fl(fl(acc * scale) + bias)``, ReLU of it if asked, rounded to ``dtype``: ``y >= threshold`` (``>`` if
    ``strict``) is ``acc >= limit``, since y never falls as acc rises. Found by bisection on the very same float
    operations, so that the bits are those of the layers run one after the other.

    Args:
        scale: fp32 [N] or [1], positive. bias: fp32 [N] or None. threshold: fp32 [N] or [1].
        features: K of the product; |acc| never exceeds it.
    """
    n = max(t.numel() for t in (scale, threshold, *(() if bias is None else (bias,))))
    low = torch.full((n,), -features - 1, dtype=torch.int32, device=scale.device)  # the answer is above
    high = torch.full_like(low, features + 1)  # the answer is not above
    for _ in range((2 * features + 2).bit_length()):
        middle = (low + high) >> 1
        y = middle.to(torch.float32) * scale
        if bias is not None:
            y = y + bias
        if relu:
            y = y.relu()
        y = y.to(dtype).to(torch.float32)
        reached = y > threshold if strict else y >= threshold
        high = torch.where(reached, middle, high)
        low = torch.where(reached, low, middle)
    return high
