"""What stays float in a packed model, in the fastest form that this processor has."""

from .optimize import MODES, optimize_

__all__ = ["MODES", "optimize_"]
