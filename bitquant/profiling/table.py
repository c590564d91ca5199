"""Profiles as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from bitquant.profiling.costs import Profile, ProfiledLayer

HEADERS = ("", "parameters", "W/A", "MB", "GFLOP", "low-bit GMAC", "GBOP", "us")
COMPARED = ("", "parameters", "MB before", "after", "GFLOP before", "after", "low-bit GMAC", "us before", "after")


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
