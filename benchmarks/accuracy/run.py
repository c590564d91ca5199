"""One distillation of a real trained encoder, measured by its task: float, trained student and packed side by side.

    python -m benchmarks.accuracy.run minilm|hama|whisper --work DIR [--speech DIR] [--seconds S] [--log FILE] ...

with the training options of ``bitquant quantize``. hama and whisper need ``--speech``, a corpus made by
``python -m recipes.hubert.fetch_speech``; the recordings that are scored are no part of training. What is said of the
run is one line of JSON, appended to ``--log``.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from tabulate import tabulate
from torch import nn

import bitquant
from bitquant.cli.options import configuration, training
from bitquant.cli.progress import TrainingBar
from bitquant.data.kind import Data
from bitquant.pipeline import binarize
from bitquant.sources import Source

Score = Callable[[dict[str, nn.Module]], dict[str, dict[str, float]]]


@dataclass
class Task:
    """What to train on, and how to measure encoders: ``{measure: {name of the encoder: number}}``."""

    source: Source
    data: Data
    score: Score


def minilm(work: Path, speech: Path | None, seconds: float, max_length: int) -> Task:
    """Retrieval and topics of sentences, higher is better."""
    from benchmarks.accuracy import minilm

    source = minilm.source()
    return Task(source, minilm.training_data(source, max_length), lambda models: minilm.score(source, models))


def hama(work: Path, speech: Path | None, seconds: float, max_length: int) -> Task:
    """Phone error rate of a Conformer-CTC, lower is better."""
    from benchmarks.accuracy.hama import write

    write(work / "hama")
    return _recognition("hama", work / "hama", work / "hama", speech, seconds)


def whisper(work: Path, speech: Path | None, seconds: float, max_length: int) -> Task:
    """Word error rate of Whisper's encoder with its own decoder, lower is better; trained on windows of ``seconds``."""
    from benchmarks.accuracy.score import LONGEST
    from benchmarks.accuracy.whisper import write

    write(work / "whisper", int(LONGEST))
    write(work / "whisper-training", int(seconds))
    return _recognition("whisper", work / "whisper", work / "whisper-training", speech, seconds)


TASKS = {task.__name__: task for task in (minilm, hama, whisper)}


def _recognition(kind: str, scored: Path, trained: Path, speech: Path | None, seconds: float) -> Task:
    from benchmarks.accuracy.score import score
    from bitquant.data import read_data
    from bitquant.sources import open_source

    if speech is None:
        raise click.UsageError(f"{kind} needs --speech, a corpus made by python -m recipes.hubert.fetch_speech")

    def measure(models: dict[str, nn.Module]) -> dict[str, dict[str, float]]:
        result = score(scoring, models, speech.resolve(), kind, everything=False)
        return {result["measure"]: {name: found["error_rate"] for name, found in result["models"].items()}}

    encoder = f"benchmarks.accuracy.{kind}:encoder"
    scoring = open_source(encoder, scored / "model.safetensors")
    source = open_source(encoder, trained / "model.safetensors")
    return Task(source, read_data(speech, source, max_seconds=seconds), measure)


@click.command()
@click.argument("kind", type=click.Choice(list(TASKS)))
@click.option(
    "--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="For weights and results."
)
@click.option("--speech", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A corpus of recordings.")
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=4.0, show_default=True, help="Longest training sample."
)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Append the result as a line of JSON.")
@training(steps=200)
def main(kind, work, speech, seconds, log, preset, config_file, skip, widths, chain, overwrite, resume, **options):
    """Distil the encoder KIND and measure it."""
    config = configuration(preset, config_file, skip, widths, chain)
    task, measured = TASKS[kind](work, speech, seconds, options.pop("max_length")), {}
    name = f"{kind}-{config.name}-{(chain or widths or 'w1a1').replace(',', '-')}-{options['steps']}-{options['seed']}"

    def collect(**models: nn.Module) -> None:
        for measure, rates in task.score(models).items():
            measured.setdefault(measure, {}).update(rates)

    settings = {key: value for key, value in options.items() if value is not None}
    with TrainingBar() as bar:
        result = binarize(
            task.source,
            task.data,
            work / name,
            config,
            chain=chain,
            overwrite=overwrite,
            resume=resume,
            progress=bar,
            say=bar.say,
            trained=lambda student: collect(float=task.source.model, student=student),
            **settings,
        )
    collect(packed=bitquant.load(work / name, model=task.source.model))
    run = {
        "task": kind,
        "config": config.to_dict(),
        "chain": chain,
        "seconds": seconds,
        **options,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "minutes": result["seconds"]["training"] / 60,
        "megabytes": result["megabytes"]["weights"],
        "milliseconds": result["milliseconds"],
        "fidelity": result["fidelity"],
        "measured": measured,
    }
    if log:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
    rows = [
        (measure, *(f"{rates[name]:.1%}" for name in ("float", "student", "packed")))
        for measure, rates in measured.items()
    ]
    click.echo(tabulate(rows, headers=("", "float", "student", "packed")))
    click.echo(f"{run['minutes']:.1f} minutes of training on {run['threads']} threads")


if __name__ == "__main__":
    main()
