"""The whole recipe in one command: ``python -m recipes.hubert.run --preset laptop --out DIR``.

Fetches speech, makes manifest and targets, pre-trains every model of the preset, binarizes it, and prints a table. Run
again, it goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from bitquant.atomic import replacing_file
from bitquant.cli.progress import TrainingBar
from bitquant.json_object import read_object

from .data.manifest import MANIFEST
from .fetch_speech import fetch
from .prepare import prepare
from .progress import watched
from .quantize import RESULTS, quantize, table
from .training.config import PretrainingConfig, load_pretraining
from .training.log import CURVES, Log, Panel, draw
from .training.loop import Pretraining

CONTROL = "-shuffled"


def run(
    config: PretrainingConfig,
    out: Path,
    *,
    audio: Path | None = None,
    models: list[str] | None = None,
    iterations: int = 2,
    control: int = 0,
    bar: TrainingBar | None = None,
) -> dict[str, dict[str, Any]]:
    """Everything, in ``out``: ``audio``, ``data``, one directory for each model, ``curves.png``, ``results.json``.

    Args:
        audio: recordings that are there already, instead of those the configuration fetches.
        models: some of the configured ones. iterations: of pre-training.
        control: updates of a first iteration on shuffled labels for each model; 0 for none.

    Returns:
        Model -> what ``quantize`` returns, with ``minutes`` of each part and ``control`` (bits on held-out audio).
    """
    bar = bar or TrainingBar()
    models = models or list(config.models)
    data = out / "data"
    if not (data / MANIFEST).exists():
        if audio is None:
            audio = out / "audio"
            fetch(audio, list(config.corpora), say=bar.say)
        prepare(audio, data, transcribed=True, say=bar.say, watch=watched)
    results = {}
    for name in models:
        told = {"progress": bar, "say": bar.say, "watch": watched}
        timed = _Timed(out / name, bar.say)
        timed("pretrain", lambda name=name, told=told: Pretraining(
            config, name, data, out / name, iterations=iterations, **told).run())  # fmt: skip
        if control:
            shuffled = _shuffled(config, control)
            timed("control", lambda name=name, told=told, shuffled=shuffled: Pretraining(
                shuffled, name, data, out / f"{name}{CONTROL}", **told).run())  # fmt: skip
        if not (out / name / RESULTS).exists():
            timed("quantize", lambda name=name: quantize(config, out / name, data, chosen=name, progress=bar))
        results[name] = {**read_object(out / name / RESULTS), "minutes": timed.minutes}
        if control:
            results[name]["control"] = _valid(out / f"{name}{CONTROL}", 1)["loss"]
        with replacing_file(out / RESULTS) as fresh:
            fresh.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        draw_all(out, list(results), iterations)
    return results


def draw_all(out: Path, models: list[str], iterations: int) -> None:
    """``out/curves.png``: each model's iterations, with its control where there is one."""
    panels = []
    for name in models:
        rows, control = Log(out / name).rows(), Log(out / f"{name}{CONTROL}").rows()
        panels += [Panel(f"{name} {n}", rows, n, control if n == 1 else []) for n in range(1, iterations + 1)]
    draw(panels, out / CURVES)


def training_table(out: Path, results: dict[str, dict[str, Any]], iterations: int) -> str:
    """Held-out masked prediction after each iteration against the entropy of its labels."""

    rows = []
    for name, found in results.items():
        for number in range(1, iterations + 1):
            row = _valid(out / name, number)
            control = f"{found['control']:.2f}" if number == 1 and "control" in found else ""
            rows.append((name, number, f"{row['unigram']:.2f}", f"{row['loss']:.2f}", control,
                         f"{row['accuracy']:.1%}", row["update"], f"{row['minutes']:.1f}"))  # fmt: skip
    headers = ("model", "iteration", "label entropy", "held-out loss", "shuffled labels", "accuracy", "updates",
               "minutes")  # fmt: skip
    return tabulate(rows, headers, disable_numparse=True, tablefmt="github")


def _valid(directory: Path, iteration: int) -> dict[str, Any]:
    """The last held-out entry of an iteration."""
    return [r for r in Log(directory).rows() if (r["split"], r["iteration"]) == ("valid", iteration)][-1]


def _shuffled(config: PretrainingConfig, updates: int) -> PretrainingConfig:
    first = dataclasses.replace(config.iterations[0], updates=updates)
    return dataclasses.replace(config, shuffled=True, iterations=(first,), validate_every=updates)


class _Timed:
    """Runs parts of the work and notes their minutes, also over several starts."""

    def __init__(self, directory: Path, say: Callable[[str], None]):
        self.file, self.say = directory / "minutes.json", say
        self.minutes = read_object(self.file) if self.file.exists() else {}

    def __call__(self, part: str, work: Callable[[], Any]) -> None:
        self.say(f"{self.file.parent.name}: {part}")
        start = time.perf_counter()
        try:
            work()
        finally:
            spent = (time.perf_counter() - start) / 60
            self.minutes[part] = round(self.minutes.get(part, 0) + spent, 2)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(self.file) as fresh:
                fresh.write_text(json.dumps(self.minutes), encoding="utf-8")


@click.command()
@click.option("--preset", default="laptop", show_default=True, help="A configuration, or the path of a TOML file.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--audio", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Your own recordings, instead of fetching some.")  # fmt: skip
@click.option("--model", "models", multiple=True, help="One of the preset's models; several times for more.")
@click.option("--iterations", default=2, show_default=True, help="Of pre-training.")
@click.option("--control", default=0, help="Updates on shuffled labels, which cannot be learnt, for each model.")
def main(preset: str, out: Path, audio: Path | None, models: tuple[str, ...], iterations: int, control: int) -> None:
    """Fetch, prepare, pre-train, binarize, measure."""
    try:
        with TrainingBar() as bar:
            results = run(load_pretraining(preset), out, audio=audio, models=list(models), iterations=iterations,
                          control=control, bar=bar)  # fmt: skip
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; the same command goes on from here") from None
    click.echo(training_table(out, results, iterations))
    click.echo()
    click.echo(table(results))
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
