"""Elastic binarization {-1, +1} and {0, 1}, k-bit levels, and weight quantizers: pure functions and thin modules."""

from .activation import ActivationQuantizer
from .elastic import effective_scale, signed_levels, unit_levels
from .integer import FLOAT_BITS, integer_levels, level_range
from .state import FixedDtype, OptionalState
from .weight import WeightQuantizer

__all__ = [
    "FLOAT_BITS",
    "ActivationQuantizer",
    "FixedDtype",
    "OptionalState",
    "WeightQuantizer",
    "effective_scale",
    "integer_levels",
    "level_range",
    "signed_levels",
    "unit_levels",
]
