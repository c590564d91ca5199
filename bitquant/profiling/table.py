"""What profiling finds: a row a layer, their sums, and both as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from bitquant.profiling.convention import Convention
from bitquant.profiling.device import Device

OUTSIDE = "outside the encoder's layers"
ADDITIVE = ("parameters", "storage_bytes", "macs", "flops", "quantized_macs", "bops", "quantized_bops", "seconds")
HEADERS = ("", "parameters", "W/A", "MB", "GFLOP", "low-bit GMAC", "GBOP", "us")
COMPARED = ("", "parameters", "MB before", "after", "GFLOP before", "after", "low-bit GMAC", "us before", "after")


@dataclass
class ProfiledLayer:
    """One row: a module, one product of an attention, or what a quantized block adds.

    ``parameters`` and ``storage_bytes`` count parameters, not buffers; of packed layers, what a checkpoint stores.
    ``macs`` and ``flops`` are float work (2 operations a multiply-accumulate), ``quantized_macs`` that on narrow
    operands. ``bops`` are float, ``quantized_bops`` narrow bit operations. ``seconds`` is at the device's peak rate.
    """

    path: str
    kind: str
    component: str
    parameters: float = 0
    storage_bytes: float = 0
    macs: float = 0
    flops: float = 0
    quantized_macs: float = 0
    bops: float = 0
    quantized_bops: float = 0
    seconds: float = 0
    weight_bits: int = 32
    activation_bits: int = 32

    def add(self, other: ProfiledLayer) -> None:
        for name in ADDITIVE:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Profile:
    """Rows of one model under one convention; ``total`` adds them up, ``by_depth`` groups, ``str()`` shows them."""

    layers: list[ProfiledLayer]
    convention: Convention
    device: Device

    @property
    def total(self) -> ProfiledLayer:
        return _sum("total", self.layers)

    def by_depth(self, depth: int) -> list[ProfiledLayer]:
        """One row for each prefix of ``depth`` names of module paths. ValueError for a depth below 1."""
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        groups: dict[str, list[ProfiledLayer]] = {}
        for layer in self.layers:
            groups.setdefault(".".join(layer.path.split(".")[:depth]), []).append(layer)
        return [_sum(path, rows) for path, rows in groups.items()]

    def by_component(self) -> list[ProfiledLayer]:
        """One row for each component: "feed-forward", "projection", "product", ..., "outside the encoder's layers"."""
        groups: dict[str, list[ProfiledLayer]] = {}
        for layer in self.layers:
            groups.setdefault(layer.component, []).append(layer)
        return [_sum(name, rows) for name, rows in groups.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "convention": self.convention.name,
            "fitted": list(self.convention.fitted),
            "device": self.device.name,
            "total": asdict(self.total),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        return table(self, self.layers)


def _sum(path: str, rows: list[ProfiledLayer]) -> ProfiledLayer:
    kinds, components = {row.kind for row in rows}, {row.component for row in rows}
    total = ProfiledLayer(
        path,
        kinds.pop() if len(kinds) == 1 else "",
        components.pop() if len(components) == 1 else "",
        weight_bits=min((row.weight_bits for row in rows), default=32),
        activation_bits=min((row.activation_bits for row in rows), default=32),
    )
    for row in rows:
        total.add(row)
    return total


def table(profile: Profile, rows: list[ProfiledLayer]) -> str:
    """Rows of one profile and their total."""
    lines = [_line(row, profile) for row in [*rows, profile.total]]
    headers = [h if h != "GBOP" or profile.convention.bop_unit == 1e9 else "GiBOP" for h in HEADERS]
    return _draw(lines, headers) + _notes(profile)


def _line(row: ProfiledLayer, profile: Profile) -> list[str]:
    bops = (row.bops + row.quantized_bops) / profile.convention.bop_unit
    widths = f"{row.weight_bits}/{row.activation_bits}"
    return [row.path, f"{row.parameters:,.0f}", widths, *_numbers(row.storage_bytes / 1e6, row.flops / 1e9,
                                                                row.quantized_macs / 1e9, bops, row.seconds * 1e6)]


def comparison(before: Profile, after: Profile, depth: int) -> str:
    """Two profiles of one model side by side, grouped by module depth."""
    first = {row.path: row for row in before.by_depth(depth)}
    second = {row.path: row for row in after.by_depth(depth)}
    lines = [_compared(path, first.get(path), second.get(path)) for path in {**first, **second}]
    lines.append(_compared("total", before.total, after.total))
    return _draw(lines, COMPARED) + _notes(after) + "\n" + _reductions(before.total, after.total)


def _compared(path: str, before: ProfiledLayer | None, after: ProfiledLayer | None) -> list[str]:
    def values(name: str, unit: float) -> list[str]:
        return _numbers(*(getattr(row, name) / unit if row else 0.0 for row in (before, after)))

    parameters = max(row.parameters for row in (before, after) if row)
    low_bit = after.quantized_macs / 1e9 if after else 0.0
    return [path, f"{parameters:,.0f}", *values("storage_bytes", 1e6), *values("flops", 1e9), *_numbers(low_bit),
            *values("seconds", 1e-6)]


def _reductions(before: ProfiledLayer, after: ProfiledLayer) -> str:
    parts = [
        f"{label} -{1 - getattr(after, name) / getattr(before, name):.1%}"
        for label, name in (("storage", "storage_bytes"), ("FLOP", "flops"), ("estimated time", "seconds"))
        if getattr(before, name)
    ]
    return ", ".join(parts)


def _numbers(*values: float) -> list[str]:
    return [(f"{value:.3f}" if value >= 0.1 else f"{value:.3g}") if value else "-" for value in values]


def _draw(lines: list[list[str]], headers) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(lines, headers=headers, colalign=align, disable_numparse=True)


def _notes(profile: Profile) -> str:
    text = f"\n{profile.convention.name} convention; time from the peak rates of {profile.device.name}, not measured"
    if profile.convention.fitted:
        text += f"\nfitted to the paper without a known reason: {'; '.join(profile.convention.fitted)}"
    return text
