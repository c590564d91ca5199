"""Distillation-based quantization-aware training: losses, optimizer, trainer."""

from .trainer import distill

__all__ = ["distill"]
