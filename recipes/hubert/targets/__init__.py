"""What pre-training predicts: a cluster for every frame (hubert.md 1.5)."""

from .labels import Targets
from .make import make_targets

__all__ = ["Targets", "make_targets"]
