"""Tile sizes and warps of a launch: from the JSON of the GPU if one is shipped, else by a rule.

``configs/*.json``: ``device`` (part of the GPU's name), ``origin`` (how the numbers came about), and for each kernel a
list of entries, tried in order: ``rows`` (the most rows it is for) beside the launch parameters.
``BITQUANT_GPU_CONFIG`` names another such file, as ``python -m benchmarks.gpu --tune FILE`` writes it.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from .device import Device
from .launch import ceil_div

CANDIDATES = {
    # largest first; the rows and columns of a block are 16 MT WM by 8 NT WN
    "b1": [
        {"MT": 4, "NT": 8, "WM": 2, "WN": 2, "num_warps": 4},
        {"MT": 2, "NT": 8, "WM": 2, "WN": 2, "num_warps": 4},
        {"MT": 2, "NT": 4, "WM": 2, "WN": 2, "num_warps": 4},
        {"MT": 1, "NT": 4, "WM": 2, "WN": 2, "num_warps": 4},
    ],
    "int8": [
        {"BM": 128, "BN": 128, "num_warps": 8, "num_stages": 2},
        {"BM": 64, "BN": 128, "num_warps": 4, "num_stages": 2},
        {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2},
        {"BM": 32, "BN": 64, "num_warps": 4, "num_stages": 2},
    ],
    "popc": [
        {"BM": 64, "BN": 64, "num_warps": 4},
        {"BM": 32, "BN": 32, "num_warps": 4},
        {"BM": 4, "BN": 32, "num_warps": 1},
    ],
    "attention": [
        {"BM": 128, "BN": 32, "num_warps": 8, "num_stages": 2},
        {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 2},
        {"BM": 32, "BN": 32, "num_warps": 4, "num_stages": 2},
    ],
    "level_product": [
        {"BM": 128, "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 2},
        {"BM": 64, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 2},
        {"BM": 64, "BN": 16, "BK": 32, "num_warps": 4, "num_stages": 2},
    ],
}
"""What autotuning tries, in the order in which the rule does."""


def settings(kernel: str, on: Device, rows: int, columns: int) -> dict[str, int]:
    """Launch parameters for an output of ``rows`` by ``columns``."""
    for entry in _shipped(on.name, os.environ.get("BITQUANT_GPU_CONFIG")).get(kernel, ()):
        if rows <= entry["rows"]:
            return {name: value for name, value in entry.items() if name != "rows"}
    return rule(kernel, on, rows, columns)


def rule(kernel: str, on: Device, rows: int, columns: int) -> dict[str, int]:
    """The largest block that still gives every multiprocessor one; among equals the first."""
    candidates = CANDIDATES[kernel]
    for candidate in candidates:
        height, width = block(candidate)
        fits = width <= columns or width == min(block(c)[1] for c in candidates)
        if fits and ceil_div(rows, height) * ceil_div(columns, width) >= on.processors:
            return candidate
    return candidates[-1]


def block(candidate: dict[str, int]) -> tuple[int, int]:
    """Rows and columns of the output that one program computes."""
    if "MT" in candidate:
        return 16 * candidate["MT"] * candidate["WM"], 8 * candidate["NT"] * candidate["WN"]
    return candidate["BM"], candidate["BN"]


@lru_cache(maxsize=16)
def _shipped(name: str, file: str | None) -> dict:
    files = [Path(file)] if file else sorted(Path(__file__).with_name("configs").glob("*.json"))
    for path in files:
        known = json.loads(path.read_text(encoding="utf-8"))
        if file or known["device"] in name:
            return known["kernels"]
    return {}
