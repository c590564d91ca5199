"""The results table of one task: widths and presets at one budget, each at the best of the same learning rates.

    python -m benchmarks.accuracy.table minilm|hama|whisper --work DIR --log FILE [--speech DIR] [--steps N] ...

The dev part chooses the rate; the test part is shown. Where the presets are compared, at W1A1, the best rate is run
with more seeds. Every run is a line of ``--log``: what is there is not run again, so that a stopped table goes on.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from benchmarks.accuracy.run import TASKS, run
from bitquant.config import QuantConfig
from bitquant.widths import parse_widths

ROWS = (
    ("bit-plus", "w1a1"),
    ("bit-ref", "w1a1"),
    ("bit-plus", "w1a2"),
    ("bit-plus", "w1a4"),
    ("bit-plus", "w1a8"),
)
COMPARED = "w1a1"


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the best mean over the measures of its dev part."""

    def quality(run: dict[str, Any]) -> float:
        # a recogniser that only repeats itself has any number of errors
        found = statistics.fmean(min(1.0, values["student"]) for values in run["dev"].values())
        return found if run["settings"]["task"] == "minilm" else -found

    return max(runs, key=quality)


def row(runs: list[dict[str, Any]], timed: list[dict[str, Any]]) -> list[str]:
    """Runs that differ by their seed: rate, minutes, each measure, mean and spread, size, and the times of a sample.

    The times are of one sample of the greatest length, float and packed in turns, in the quickest run of ``timed``.
    """
    one = runs[0]
    cells = [f"{one['settings']['lr']:g}", f"{statistics.fmean(run['minutes'] for run in runs):.0f}"]
    for measure in one["measured"]:
        values = [100 * run["measured"][measure]["packed"] for run in runs]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.fmean(values):.1f}{spread} %")
    alone = [[timing for timing in run["milliseconds"] if timing["batch"] == 1][-1] for run in timed]
    times = min(alone, key=lambda timing: timing["before"] + timing["after"])
    return [*cells, f"{one['megabytes']['after']:.2f}", f"{times['before']:.1f}, {times['after']:.1f}"]


@click.command()
@click.argument("kind", type=click.Choice(list(TASKS)))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="For the checkpoints.")
@click.option("--log", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Lines of JSON, one a run.")
@click.option("--speech", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Corpora.")
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=4.0, show_default=True, help="Longest training sample of hama."
)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1))
@click.option("--low-rank", type=click.IntRange(min=1), metavar="RANK", help="A last row: with float paths, at W1A1.")
@click.option("--rates", default="0.002,0.004,0.008", show_default=True, help="Learning rates to choose from.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Of the compared rows.")
def main(kind, work, log, low_rank, rates, seeds, **options):
    """Run and print the table of the task KIND."""
    work.mkdir(parents=True, exist_ok=True)
    rows, measures = [], []
    beside = [("bit-plus", COMPARED, low_rank)] if low_rank else []
    for preset, widths, rank in [*((*row, 0) for row in ROWS), *beside]:
        config = QuantConfig.preset(preset, **dataclasses.asdict(parse_widths(widths)), low_rank=rank)

        def once(lr: float, seed: int, config: QuantConfig = config) -> dict[str, Any]:
            return run(kind, config, work, log=log, lr=lr, seed=seed, overwrite=True, **options)

        at_rates = [once(float(rate), 0) for rate in rates.split(",")]
        runs = [best(at_rates)]
        if widths == COMPARED:
            runs += [once(runs[0]["settings"]["lr"], seed) for seed in range(1, seeds)]
        if not rows:
            measures = list(runs[0]["measured"])
            floats = [f"{100 * values['float']:.1f} %" for values in runs[0]["measured"].values()]
            rows.append(["float", "", "", "", *floats, f"{runs[0]['megabytes']['before']:.2f}", ""])
        label = f"{widths.upper()}, low rank {rank}" if rank else widths.upper()
        rows.append([preset, label, *row(runs, at_rates + runs[1:])])
    headers = ("preset", "widths", "lr", "minutes", *measures, "MB", "ms, float and packed")
    click.echo(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
