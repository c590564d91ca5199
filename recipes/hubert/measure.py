"""Milliseconds of the models on this machine, float and packed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch

import bitquant
from bitquant.measure import milliseconds
from bitquant.profiling import profile

from .model import Hubert


def measure_models(presets: Mapping[str, str], samples: int, *, say: Callable[[str], None] = lambda line: None,
                   seconds: float = 5.0) -> dict[str, dict[str, float]]:
    """Shortest time of one forward pass and stored megabytes, before and after ``quantize_`` and ``convert_``.

    Args:
        presets: name in the result -> preset. samples: of one waveform at 16 kHz, noise.
        say: called with a line before each model. seconds: spent on each, at least 5 passes.

    Returns:
        name -> ``float_ms``, ``packed_ms``, ``float_mb``, ``packed_mb``, and ``share``: of the multiply-accumulates,
        those on 1-bit operands. Random weights: they change no time.
    """
    found = {}
    wave = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    for name, preset in presets.items():
        say(f"measuring {name}")
        torch.manual_seed(0)
        model = Hubert.from_preset(preset).eval()
        packed = copy.deepcopy(model)
        bitquant.quantize_(packed, "bit-plus", wave)
        share = bitquant.report(packed).share_binarized
        bitquant.convert_(packed)
        times = milliseconds({"float": model, "packed": packed}, {"input_values": wave}, seconds=seconds)
        sizes = {key: profile(m, wave).total.storage_bytes / 1e6 for key, m in (("float", model), ("packed", packed))}
        found[name] = {
            "float_ms": times["float"],
            "packed_ms": times["packed"],
            "float_mb": sizes["float"],
            "packed_mb": sizes["packed"],
            "share": share,
        }
    return found
