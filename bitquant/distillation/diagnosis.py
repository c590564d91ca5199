"""Where numbers that are not finite come from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bitquant.inputs import named_tensors


def not_finite(places: dict[str, Any]) -> str:
    """Of some places, in the order in which one follows from another, the first that holds NaN, or else infinity.

    Args:
        places: name -> tensors, however nested.

    Returns:
        str: `` (NaN in the teacher's outputs, logits)``, or nothing where all are finite.
    """
    for what, found in (("NaN", Tensor.isnan), ("infinity", Tensor.isinf)):
        for place, value in places.items():
            for name, tensor in named_tensors(value).items():
                if tensor.is_floating_point() and bool(found(tensor).any()):
                    return f" ({what} in the {place}{f', {name}' if name else ''})"
    return ""
