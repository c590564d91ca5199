"""Elastic binarization {-1, +1} and {0, 1}, and weight binarizers: pure functions and thin modules."""

from .activation import ElasticBinarizer
from .elastic import effective_scale, signed_levels, unit_levels
from .state import OptionalState
from .weight import WeightBinarizer

__all__ = ["ElasticBinarizer", "OptionalState", "WeightBinarizer", "effective_scale", "signed_levels", "unit_levels"]
