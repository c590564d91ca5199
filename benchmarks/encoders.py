"""Whole packed encoders on this CPU, side by side with what a user would run instead.

    python -m benchmarks.encoders [--json] [--threads N] [--seconds S] [--shape NAME] [--low-rank RANK] [--memory]

10 s of speech, that is 500 frames, through Transformer encoders with random weights (they change no time): floats in,
floats out. The packed encoder is first compared with the definition of its ops, bit for bit. Then all forms take turns
in random order in one process; medians count.
"""

import json
import tempfile
from pathlib import Path

import click
import torch
from tabulate import tabulate

import bitquant
from benchmarks.peak_memory import peak_megabytes
from benchmarks.rivals import MISSING, ONNX_RUNTIME, rivals
from benchmarks.timing import median_times
from benchmarks.transformer import FRAMES, SHAPES, encoder, packed
from bitquant import ops
from bitquant.runtime.shares import shares

OURS = "1-bit"


def measure(shape, frames, seconds, memory, low_rank=0):
    """One row: milliseconds of every form, ratios to ours, shares of ours, and peak memory."""
    torch.manual_seed(0)
    model = encoder(shape).requires_grad_(False)
    x = torch.randn(1, frames, model.dim)
    ours = packed(model, x, low_rank)
    with torch.inference_mode():
        calls = {OURS: lambda: ours(x)} | rivals(model, x)
        times = {name: 1e3 * t for name, t in median_times(calls, seconds, settle=True).items()}
    row = {"encoder": shape, "frames": frames, "low_rank": low_rank, "milliseconds": times}
    row["times_faster_than"] = {name: t / times[OURS] for name, t in times.items() if name != OURS}
    row["shares"] = shares(ours, x)
    if memory:
        row["peak_megabytes"] = peaks(shape, ours)
    return row


def peaks(shape, model):
    with tempfile.TemporaryDirectory() as folder:
        bitquant.save(model, Path(folder) / "packed")
        return {"fp32": peak_megabytes(shape, "float"), OURS: peak_megabytes(shape, Path(folder) / "packed")}


def show(rows):
    names = list(rows[0]["milliseconds"])
    table = [
        [r["encoder"], r["frames"], *(f"{r['milliseconds'][n]:.2f}" for n in names),
         *(f"{r['times_faster_than'][n]:.1f}" for n in names[1:])]
        for r in rows
    ]  # fmt: skip
    headers = ["encoder", "frames", *(f"{n} ms" for n in names), *(f"x {n}" for n in names[1:])]
    click.echo(tabulate(table, headers=headers, disable_numparse=True, colalign=["right"] * len(headers)))
    for row in rows:
        total = sum(row["shares"].values())
        parts = ", ".join(f"{kind} {100 * ms / total:.0f} %" for kind, ms in row["shares"].items() if ms > 0.01 * total)
        click.echo(f"\n{row['encoder']}, {row['frames']} frames, {OURS}: {parts}")
        if "peak_megabytes" in row:
            fp32, ours = row["peak_megabytes"]["fp32"], row["peak_megabytes"][OURS]
            click.echo(f"peak memory of one forward pass: fp32 {fp32:.1f} MB, {OURS} {ours:.1f} MB, {fp32 / ours:.1f}x")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--threads", type=click.IntRange(1), help="Threads of every form.  [default: torch's own]")
@click.option("--seconds", default=3.0, show_default=True, help="Time spent on each encoder.")
@click.option("--shape", "chosen", type=click.Choice(list(SHAPES)), multiple=True, help="Only this one; repeatable.")
@click.option("--frames", type=click.IntRange(1), default=FRAMES, show_default=True)
@click.option("--low-rank", type=click.IntRange(0), default=0, help="Of the float paths.  [default: none]")
@click.option("--memory", is_flag=True, help="Also the peak memory, in fresh processes.")
def main(as_json, threads, seconds, chosen, frames, low_rank, memory):
    """Time packed encoders against torch and ONNX Runtime."""
    if threads:
        torch.set_num_threads(threads)
    rows = [measure(shape, frames, seconds, memory, low_rank) for shape in chosen or SHAPES]
    facts = {"backend": ops.backends()[0].reason, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        click.echo(json.dumps(facts | {"onnx_runtime": ONNX_RUNTIME, "encoders": rows}, indent=2))
        return
    click.echo(
        f"{facts['backend']}; {facts['threads']} threads; torch {facts['torch']}; all encoders equal the definition\n"
    )
    show(rows)
    if not ONNX_RUNTIME:
        click.echo(f"\n{MISSING}")


if __name__ == "__main__":
    main()
