"""Waveform feature extractors of speech encoders: which modules they are, and the forward they get."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant.capture import mutate_class_

from . import stack
from .onednn import Prepared, inference_on_cpu
from .stack import Stack, Step


class TransformersExtractor:
    """Put in front of a feature encoder of transformers (HuBERT, wav2vec 2.0, WavLM, data2vec, UniSpeech, SEW)."""

    def forward(self, input_values: Tensor) -> Tensor:
        if input_values.ndim != 2 or not inference_on_cpu(self, input_values):
            return super().forward(input_values)
        return run(self, input_values).transpose(1, 2)


class SteppedExtractor:
    """Put in front of a module that says what its steps are (``conv_steps()``) and whose ``frames(wave, valid)`` runs
    them: (B, N), outputs of the first convolution that its norm counts, int (B,) or None -> (B, C, T)."""

    def frames(self, wave: Tensor, valid: Tensor | None = None) -> Tensor:
        return run(self, wave, valid).transpose(1, 2) if inference_on_cpu(self, wave) else super().frames(wave, valid)


def steps_of(module: nn.Module) -> list[Step] | None:
    """The steps of an extractor; None for any other module."""
    if hasattr(module, "conv_steps") and hasattr(module, "frames"):
        return [Step(*step) for step in module.conv_steps()]
    layers = getattr(module, "conv_layers", None)
    parts = ("conv", "activation")
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, part) for layer in layers for part in parts):
        return None
    return [Step(layer.conv, getattr(layer, "layer_norm", None), layer.activation) for layer in layers]


def unsupported(module: nn.Module) -> str | None:
    """Why an extractor is not to be replaced, or None."""
    return stack.unsupported(steps_of(module))


def replace_(module: nn.Module, dtype: torch.dtype) -> None:
    """Give an extractor its fast forward; ValueError where that does not give what it gave."""
    wave = torch.randn(2, 4 * stack.receptive_field(steps_of(module)), generator=torch.Generator().manual_seed(0))
    call = "frames" if hasattr(module, "frames") else "forward"
    with torch.no_grad():
        expected = getattr(module, call)(wave)
    own = type(module)
    mixin = SteppedExtractor if call == "frames" else TransformersExtractor
    mutate_class_(module, mixin, name=own.__name__)
    module.__dict__["_dtype"], module.__dict__["_stack"] = dtype, Prepared(_make)
    with torch.no_grad():
        found = getattr(module, call)(wave)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    if found.shape != expected.shape or (found - expected).abs().max() > tolerance * expected.abs().max():
        module.__class__ = own
        raise ValueError("it computes more than its convolutions, norms and activations")


def run(module: nn.Module, wave: Tensor, valid: Tensor | None = None) -> Tensor:
    """fp32 (B, T, C)."""
    return module.__dict__["_stack"].get(tuple(module.parameters()), module)(wave, valid)


def _make(module: nn.Module) -> Stack:
    return Stack(steps_of(module), module._dtype)
