"""Milliseconds of the models on this machine, float and packed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch

import bitquant
from bitquant.measure import milliseconds
from bitquant.profiling import profile

from .model import Hubert
from .paper import EVERY_LAYER


def measure_models(presets: Mapping[str, str], samples: int, *, say: Callable[[str], None] = lambda line: None,
                   seconds: float = 60.0) -> dict[str, dict[str, float]]:
    """Shortest time of one forward pass and stored megabytes, before and after ``quantize_`` and ``convert_``.

    All models take turns, so that a busy moment of the machine hits them alike.

    Args:
        presets: name in the result -> preset. samples: of one waveform at 16 kHz, noise.
        say: called with a line before each step. seconds: of measuring, but at least 5 rounds.

    Returns:
        name -> ``float_ms``, ``packed_ms``, ``float_mb``, ``packed_mb``, and ``share``: of the multiply-accumulates,
        those on 1-bit operands. Random weights: they change no time.
    """
    models, shares = {}, {}
    wave = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    for name, preset in presets.items():
        say(f"building and packing {name}")
        torch.manual_seed(0)
        model = Hubert.from_preset(preset).eval()
        packed = copy.deepcopy(model)
        bitquant.quantize_(packed, EVERY_LAYER, wave)
        shares[name] = bitquant.report(packed).share_binarized
        bitquant.convert_(packed)
        models[name, "float"], models[name, "packed"] = model, packed
    say(f"measuring for {seconds:.0f} s")
    times = milliseconds(models, {"input_values": wave}, seconds=seconds)
    megabytes = {key: profile(model, wave).total.storage_bytes / 1e6 for key, model in models.items()}
    return {
        name: {
            **{f"{kind}_ms": times[name, kind] for kind in ("float", "packed")},
            **{f"{kind}_mb": megabytes[name, kind] for kind in ("float", "packed")},
            "share": shares[name],
        }
        for name in presets
    }
