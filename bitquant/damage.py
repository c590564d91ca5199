"""``sensitivity``: what binarizing each layer alone does to the outputs, and which layers to keep wider."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bitquant.caches import caches_dropped
from bitquant.capture import check_model
from bitquant.config import ConfigLike, QuantConfig
from bitquant.distillation.losses import output_loss
from bitquant.inputs import padding_mask, run
from bitquant.quantize import calibrate_, quantize_
from bitquant.record import record_of

KEPT_BITS = 8


@dataclass
class Damage:
    """One layer or product alone at the configuration's width, and with inputs of 8 bits (an embedding: a table of 8
    bits), all others in float.

    ``damage`` and ``damage_at_8`` are the loss of the outputs against the float ones (relative squared error; KL for
    logits), without any training; ``proposal`` is the activation width to keep it at, 32 for float, None for the
    configuration's.
    """

    path: str
    kind: str
    macs: int
    damage: float
    damage_at_8: float
    proposal: int | None = None


@dataclass
class Sensitivity:
    """Rows, the worst first; ``str()`` draws a table, ``to_dict()`` is JSON-able, ``rules`` are for a configuration."""

    rows: list[Damage]
    total_macs: int

    def propose(self, budget: float) -> None:
        """Choose what to keep wider: the layers whose damage shrinks most for their multiply-accumulates.

        A layer is kept at 8-bit inputs where that takes away half of its damage, and in float otherwise; attention
        products always in float: they hold no weights, and a float softmax between 8-bit products is slower than the
        float product. Embeddings, which cost no multiply-accumulates, are left as they are: see
        ``QuantConfig.embedding_bits``.

        Args:
            budget: share of all multiply-accumulates that may be wider, 0 to 1.
        """
        left = budget * self.total_macs
        for row in sorted(self.rows, key=lambda row: row.damage / max(row.macs, 1), reverse=True):
            row.proposal = None
            if 0 < row.macs <= left and row.damage > 0:
                enough = row.kind != "attention" and row.damage_at_8 <= row.damage / 2
                row.proposal = KEPT_BITS if enough else 32
                left -= row.macs

    @property
    def rules(self) -> dict[str, dict[str, Any] | None]:
        """The proposal as ``QuantConfig.rules``."""
        kept = {row.path: row.proposal for row in self.rows if row.proposal}
        return {path: {"activation_bits": KEPT_BITS} if bits == KEPT_BITS else None for path, bits in kept.items()}

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "total_macs": self.total_macs, "rules": self.rules}

    def __str__(self) -> str:
        from tabulate import tabulate

        names = {None: "", KEPT_BITS: f"{KEPT_BITS}-bit inputs", 32: "float"}
        lines = [
            (
                row.path,
                row.kind,
                f"{row.macs / max(self.total_macs, 1):.1%}",
                f"{row.damage:.4f}",
                f"{row.damage_at_8:.4f}",
                names[row.proposal],
            )
            for row in self.rows
        ]
        return tabulate(lines, headers=["layer", "kind", "MACs", "damage", f"at {KEPT_BITS} bits", "keep"])


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    config: ConfigLike,
    batches: Iterable[Any],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Binarize each layer and product of a float model alone, calibrated but not trained, and measure the outputs.

    Args:
        model: the float model; not changed.
        config: what each is binarized to, as for ``quantize_``. ReLU in place of other activation functions, where the
            preset asks for it, is part of what all are compared with.
        batches: inputs as for ``example_inputs``; all are used for calibration and for measuring.
        progress: called with (layers done, layers).

    Raises:
        ValueError: no batches, or what ``quantize_`` refuses.
    """
    check_model(model)
    config = QuantConfig.of(config)
    batches = list(batches)
    if not batches:
        raise ValueError("there is nothing to measure on: batches is empty (give a list, not a spent iterator)")
    # every layer is there and calibrated, but passes floats through
    wide = dataclasses.replace(config, weight_bits=32, activation_bits=32, rules=_widened(config.rules))
    student = copy.deepcopy(model).eval()
    quantize_(student, wide, batches[0])
    calibrate_(student, batches)
    record = record_of(student)
    expected = [run(student, batch) for batch in batches]

    def loss() -> float:
        with caches_dropped(student):  # what was computed at other widths
            losses = [
                output_loss(run(student, batch), target, padding_mask(batch))
                for batch, target in zip(batches, expected, strict=True)
            ]
        return torch.stack(losses).mean().item()

    rows = []
    quantized = [row for row in record.rows if row.reason is None]
    for done, row in enumerate(quantized):
        layer, narrow = student.get_submodule(row.path), config.for_module(row.path)
        damages = {}
        width = "embedding_bits" if row.kind == "embedding" else "activation_bits"
        for bits in {getattr(narrow, width), KEPT_BITS}:
            layer.set_bits(dataclasses.replace(narrow, **{width: bits}))
            damages[bits] = loss()
            layer.set_bits(wide)
        rows.append(Damage(row.path, row.kind, row.macs, damages[getattr(narrow, width)], damages[KEPT_BITS]))
        progress(done + 1, len(quantized))
    return Sensitivity(sorted(rows, key=lambda row: row.damage, reverse=True), record.total_macs)


def _widened(rules):
    """The rules without their widths, which all are 32 here."""
    bits = ("weight_bits", "activation_bits")
    return {
        name: fields and {key: value for key, value in fields.items() if key not in bits}
        for name, fields in rules.items()
    }
