"""Widths of weights and activations: ``w1a8`` and its kind, chains of them, and changing a student's in place."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from bitquant.config import QuantConfig
from bitquant.coverage import require_student
from bitquant.quantizers import FLOAT_BITS, ActivationQuantizer, WeightQuantizer
from bitquant.record import record_of

CHAINS = {"bit": "w1a2,w1a1"}  # BiT: from the float model by W1A2 to W1A1 (bit.md 5.1)


@dataclasses.dataclass(frozen=True)
class Widths:
    """Bits of weights (1 or 32) and activations (1, 2, 4, 8 or 32); ``str()`` gives ``w1a8``."""

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


def parse_widths(text: str) -> Widths:
    """``"w1a8"`` -> Widths(1, 8). ValueError for anything else."""
    match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
    widths = Widths(int(match[1]), int(match[2])) if match else None
    if widths is None or widths.weight_bits not in (1, 32) or widths.activation_bits not in (1, 2, 4, 8, 32):
        raise ValueError(f"{text!r} is no width: use w1 or w32 and a1, a2, a4, a8 or a32, as in w1a8")
    return widths


def parse_chain(text: str) -> list[Widths]:
    """``"w1a8,w1a4,w1a1"``, or the name of a chain in ``CHAINS`` -> the widths of each stage.

    ValueError for anything else, and for a stage that is wider than the one before.
    """
    stages = [parse_widths(part) for part in CHAINS.get(text, text).split(",")]
    for before, after in itertools.pairwise(stages):
        if after.weight_bits > before.weight_bits or after.activation_bits > before.activation_bits:
            raise ValueError(
                f"the chain {text!r} goes up from {before} to {after}: each stage must be as wide or narrower"
            )
    return stages


def widths_of(model: nn.Module) -> Widths:
    """The widths a student is configured for (rules of single modules apart)."""
    config = record_of(model).config
    return Widths(config.weight_bits, config.activation_bits)


def set_widths_(model: nn.Module, widths: Widths) -> None:
    """Change the widths of a student in place; latent weights, shifts and scales are inherited.

    Modules whose width a rule of the configuration fixes keep it. ValueError when the model is not a student.
    """
    record = require_student(model)
    record.config = dataclasses.replace(record.config, **dataclasses.asdict(widths))
    rows = {row.path: row for row in record.rows}
    for path, module in model.named_modules():
        if hasattr(module, "set_bits") and path in rows:
            config = record.config_of(path)
            module.set_bits(config)
            rows[path].set_bits(config)


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Context in which a student, or a module that holds one, computes all quantized products in float, those whose
    width a rule fixes too. What is learnt and calibrated stays as it is."""
    wide = QuantConfig(weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS)
    quantizers = {m: m.bits for m in model.modules() if isinstance(m, (ActivationQuantizer, WeightQuantizer))}
    layers = [m for m in model.modules() if hasattr(m, "set_bits") and m not in quantizers]
    children = [(layer, dict(layer._modules)) for layer in layers]  # 1-bit attention has a rule of its own
    for layer in layers:
        layer.set_bits(wide)
    try:
        yield
    finally:
        for layer, before in children:
            layer._modules.update(before)
        for quantizer, bits in quantizers.items():
            quantizer.bits = bits
