"""The paper's Table 1, computed: ``python -m recipes.hubert.table1 [--convention paper|consistent] [--measure]``.

Every cell comes from the captured graph of a preset; the paper's own numbers are in ``paper.py`` and only compared.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import click
import torch
from tabulate import tabulate

from bitquant.profiling import CONSISTENT, PAPER, Convention, ProfiledLayer, profile

from .config import load_config
from .paper import COLUMNS, EVERY_LAYER, TABLE1
from .pretraining import HubertForPretraining

SECONDS, SAMPLE_RATE = 10, 16_000
MEASURING_SECONDS = 60.0
MODELS = {
    "Vanilla": "vanilla_fastconv",
    "Conformer-S": "conformer_s_f3072",
    "Squeezeformer-XS": "squeezeformer_xs_f3072",
    "Sparseformer-DN-S": "sparseformer_dn",
    "Sparseformer-SW-S": "sparseformer_sw",
}
BINARY = "BQ-"

# The two vanilla rows repeat an earlier paper's, in half precision. Fitted: its BOPs lack the attention projections.
PAPER_VANILLA = replace(
    PAPER,
    float_bytes=2,
    bop_counts={("attention", "projection"): replace(PAPER.counts["attention", "projection"], whole=0.0)},
)
_HEADERS = {
    "paper": ("model", "MB", "FLOP G", "BOP float Gi", "BOP 1-bit Gi", "time 1e-4 s"),
    "consistent": ("model", "MB", "FLOP G", "BOP float G", "binary GMAC", "time 1e-4 s"),
}


def rows(convention: str) -> dict[str, tuple[float | None, ...]]:
    """Row name -> storage (MB), FLOP (G), float BOPs, 1-bit BOPs (``"paper"``, Gi) or binary GMAC (``"consistent"``;
    its BOPs are in G), estimated time on an A100 (1e-4 s); None where a float model has none.

    Args:
        convention: ``"paper"`` (500 frames, its coefficients) or ``"consistent"`` (499 frames, each product once).

    Raises:
        ValueError: another convention.
    """
    if convention not in _HEADERS:
        raise ValueError(f"convention must be one of {', '.join(_HEADERS)}; got {convention!r}")
    wave = torch.zeros(1, SECONDS * SAMPLE_RATE, device="meta")  # shapes are enough, and nothing is computed
    floats, binaries = {}, {}
    for name, preset in MODELS.items():
        config = load_config(preset, sequence_multiple=2 if convention == "paper" else 1)
        with torch.device("meta"):
            model = HubertForPretraining(config).eval()
        chosen = _convention(convention, name)
        for found, prefix, bits in ((floats, "", None), (binaries, BINARY, 1)):
            # class embeddings only serve pre-training (hubert.md 2.1)
            total = profile(model, wave, weight_bits=bits, activation_bits=bits, config=EVERY_LAYER, convention=chosen,
                            not_stored=(r"head\.label_embeddings\..*",)).total  # fmt: skip
            found[prefix + name] = _cells(total, chosen, binary=bits is not None)
    return {**floats, **binaries}


def _convention(name: str, model: str) -> Convention:
    if name == "consistent":
        return CONSISTENT
    return PAPER_VANILLA if model == "Vanilla" else PAPER


def _cells(total: ProfiledLayer, convention: Convention, *, binary: bool) -> tuple[float | None, ...]:
    low_bit = total.quantized_bops / convention.bop_unit if convention.bops == "mac32" else total.quantized_macs / 1e9
    return (
        total.storage_bytes / 1e6,
        total.flops / 1e9,
        total.bops / convention.bop_unit,
        low_bit if binary else None,
        total.seconds * 1e4,
    )


def differences(ours: dict[str, tuple[float | None, ...]]) -> dict[str, tuple[float | None, ...]]:
    """Relative difference from the paper's cells, (ours - paper) / paper."""
    return {
        name: tuple(mine / theirs - 1 if theirs and mine is not None else None
                    for mine, theirs in zip(cells, TABLE1[name], strict=True))
        for name, cells in ours.items()
    }  # fmt: skip


def reductions(ours: dict[str, tuple[float | None, ...]]) -> dict[str, float]:
    """What the binarized deep-narrow Sparseformer saves against the float baseline, as shares."""
    before, after = ours["Vanilla"], ours[BINARY + "Sparseformer-DN-S"]
    return {name: 1 - after[index] / before[index] for name, index in (("storage", 0), ("FLOP", 1), ("time", 4))}


@click.command()
@click.option("--convention", type=click.Choice(list(_HEADERS)), default="consistent", show_default=True)
@click.option("--measure", is_flag=True, help="Also time 10 s of audio on this machine, float and packed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(convention, measure, as_json):
    """Compute the paper's Table 1, and compare."""
    ours = rows(convention)
    measured = {}
    if measure:
        from .measure import measure_models

        say = partial(click.echo, err=True)
        measured = measure_models(MODELS, SECONDS * SAMPLE_RATE, say=say, seconds=MEASURING_SECONDS)
    if as_json:
        click.echo(json.dumps(to_dict(convention, ours, measured), indent=2))
        return
    click.echo(_table(convention, ours))
    if measured:
        click.echo("\n" + tabulate(
            [(name, *(f"{row[key]:.1f}" for key in ("float_ms", "packed_ms")),
              *(f"{row[key]:.2f}" for key in ("float_mb", "packed_mb")))
             for name, row in measured.items()],
            headers=(f"{SECONDS} s of audio, {torch.get_num_threads()} thread(s)", "float ms", "packed ms", "float MB",
                     "packed MB"),
            colalign=("left", *["right"] * 4), disable_numparse=True,
        ))  # fmt: skip


def to_dict(convention, ours, measured):
    """JSON-able form of everything the command prints."""
    far = differences(ours)
    table = {
        name: {"ours": dict(zip(COLUMNS, cells, strict=True)), "paper": dict(zip(COLUMNS, TABLE1[name], strict=True)),
               "difference": dict(zip(COLUMNS, far[name], strict=True))}
        for name, cells in ours.items()
    }  # fmt: skip
    fitted = list(PAPER.fitted) if convention == "paper" else []
    return {"convention": convention, "fitted": fitted, "rows": table, "reductions": reductions(ours),
            "measured": measured}  # fmt: skip


def _table(convention, ours):
    far, lines = differences(ours), []
    for name, cells in ours.items():
        lines.append([name, *(_number(cell) for cell in cells)])
        if convention == "paper":
            lines.append(["  paper", *(_number(cell) for cell in TABLE1[name])])
            lines.append(["  difference", *("-" if cell is None else f"{cell:+.2%}" for cell in far[name])])
    text = tabulate(lines, headers=_HEADERS[convention], colalign=("left", *["right"] * 5), disable_numparse=True)
    saved = ", ".join(f"{name} -{share:.1%}" for name, share in reductions(ours).items())
    text += f"\n\nVanilla -> BQ-Sparseformer-DN-S: {saved}"
    if convention == "paper":
        text += f"\nFitted, without a known reason: {'; '.join(PAPER.fitted)}; BOPs of the vanilla row"
    return text


def _number(cell):
    return "-" if cell is None else f"{cell:.2f}"


if __name__ == "__main__":
    main()
