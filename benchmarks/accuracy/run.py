"""One distillation of a real trained encoder, measured by its task: float, trained student and packed side by side.

    python -m benchmarks.accuracy.run minilm|hama|whisper --work DIR [--speech DIR] [--seconds S] [--log FILE] ...

with the training options of ``bitquant quantize``. hama and whisper need ``--speech``, a corpus made by
``python -m recipes.hubert.fetch_speech``; further ones fill the samples of training. No training sees what is scored:
the test part, and the dev part, by which settings are chosen. What is said of the run is one line of JSON, appended to
``--log``.
"""

import functools
import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from tabulate import tabulate
from torch import nn

import bitquant
from benchmarks.accuracy.teacher import RememberingTeacher
from bitquant.cli.options import training
from bitquant.cli.progress import TrainingBar
from bitquant.config import QuantConfig
from bitquant.data.kind import Data
from bitquant.pipeline import binarize
from bitquant.sources import Source

# count changes of data and training: a run of before does not stand for one of now
RECIPES = {"minilm": 3, "hama": 2, "whisper": 2}
CURVE = 40  # points of the loss curve that is kept
Score = Callable[[dict[str, nn.Module], str], dict[str, dict[str, float]]]


class Setup(NamedTuple):
    """What a task is made from: where weights go, corpora, the longest sample in seconds or tokens, and how much the
    answers of Whisper's decoder count."""

    work: Path
    speech: tuple[Path, ...]
    seconds: float
    max_length: int
    decoder_weight: float = 0.0


class Task(NamedTuple):
    """What is trained on, how models are measured, ``score(models, part)`` giving {measure: {name: value}}, and what
    else ``bitquant.distill`` gets."""

    source: Source
    data: Data
    score: Score
    training: dict[str, Any] = {}


def minilm(setup: Setup) -> Task:
    """Retrieval and topics of sentences, higher is better."""
    from benchmarks.accuracy import minilm

    source = minilm.source()
    data = minilm.training_data(source, setup.max_length)
    return Task(source, data, lambda models, part: minilm.score(source, models, part))


def hama(setup: Setup) -> Task:
    """Phone error rate of a Conformer-CTC, lower is better."""
    from benchmarks.accuracy.hama import write

    write(setup.work / "hama")
    return _recognition("hama", setup)


def whisper(setup: Setup) -> Task:
    """Words and next tokens that Whisper's own decoder gets wrong with an encoder, lower is better.

    Trained on windows as long as those that are scored: on shorter ones the float model itself soon goes wrong.
    """
    from benchmarks.accuracy.decoder_loss import decoder_loss
    from benchmarks.accuracy.next_token import next_token_errors
    from benchmarks.accuracy.score import LONGEST
    from benchmarks.accuracy.whisper import write

    write(setup.work / "whisper", int(LONGEST))
    task = _recognition("whisper", setup._replace(seconds=LONGEST))

    def measure(models: dict[str, nn.Module], part: str) -> dict[str, dict[str, float]]:
        errors = next_token_errors(task.source, models, setup.speech[0].resolve(), part=part)
        return {**task.score(models, part), "next token error": errors}

    if not setup.decoder_weight:
        return task._replace(score=measure)
    return task._replace(score=measure, training={"extra_loss": decoder_loss(setup.decoder_weight)})


TASKS = {task.__name__: task for task in (minilm, hama, whisper)}


def _recognition(kind: str, setup: Setup) -> Task:
    from benchmarks.accuracy.joined import JoinedRecordings
    from benchmarks.accuracy.score import parts, score
    from bitquant.sources import open_source

    if not setup.speech:
        raise click.UsageError(f"{kind} needs --speech, a corpus made by python -m recipes.hubert.fetch_speech")

    def measure(models: dict[str, nn.Module], part: str) -> dict[str, dict[str, float]]:
        found = score(source, models, setup.speech[0].resolve(), kind, part=part)["models"]
        first = next(iter(next(iter(found.values()))["errors"]))
        return {first: {name: result["errors"][first] for name, result in found.items()}}

    source = open_source(f"benchmarks.accuracy.{kind}:encoder", setup.work / kind / "model.safetensors")
    recordings = JoinedRecordings.read(setup.speech[0], source, max_seconds=setup.seconds)
    recordings.fill_with(setup.speech[1:])
    dev = set(parts(recordings)["dev"])
    recordings.samples = [name for name in recordings.samples if name not in dev]
    return Task(source, recordings, measure)


def run(
    kind: str,
    config: QuantConfig,
    work: Path,
    *,
    speech: tuple[Path, ...] = (),
    seconds: float = 4.0,
    max_length: int = 128,
    decoder_weight: float = 0.0,
    log: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **training: Any,
) -> dict[str, Any]:
    """Distil the encoder of a task and measure it; the checkpoint is left in a directory of its own below ``work``.

    Args:
        kind: key of ``TASKS``.
        speech: corpora. The first is split and scored; the others only fill samples of training.
        decoder_weight: of the answers of Whisper's decoder in its loss.
        log: gets the result as a line of JSON. A run that it holds is not run again.
        training: options of ``bitquant.pipeline.binarize``; None stands for its default.

    Returns:
        JSON-able: ``settings``, ``directory``, ``measured`` (test part; float, student, packed), ``dev`` (the student),
        ``losses`` (means of equal parts of the training), minutes, sizes and times.
    """
    training = {key: value for key, value in training.items() if value is not None}
    if "chain" not in training:
        training.pop("stage_teacher", None)  # who teaches the stages after the first
    settings = {"task": kind, "recipe": RECIPES[kind], "config": config.to_dict(), "seconds": seconds}
    settings |= {"max_length": max_length, **training}
    if decoder_weight:
        if kind != "whisper":
            raise click.UsageError(f"--decoder-weight is for whisper: {kind} has no decoder")
        settings["decoder_weight"] = decoder_weight
    settings.pop("checkpoint_every", None)
    if len(speech) > 1:
        settings["more_speech"] = [folder.name for folder in speech[1:]]
    for line in log.read_text(encoding="utf-8").splitlines() if log and log.exists() else ():
        if (earlier := json.loads(line))["settings"] == settings:
            return earlier
    name = f"{kind}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]}"
    task, teacher, floats = _prepared(kind, Setup(work, speech, seconds, max_length, decoder_weight))
    measured, dev, losses = {measure: dict(values) for measure, values in floats.items()}, {}, []

    def collect(into: dict, part: str, **models: nn.Module) -> None:
        for measure, values in task.score(models, part).items():
            into.setdefault(measure, {}).update(values)

    def measure_student(student: nn.Module) -> None:
        collect(dev, "dev", student=student)
        collect(measured, "test", student=student)

    with TrainingBar() as bar:

        def progress(state: dict[str, Any]) -> None:
            losses.append(state["loss"])
            bar(state)

        result = binarize(
            task.source,
            task.data,
            work / name,
            config,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            say=bar.say,
            trained=measure_student,
            teacher=teacher,
            **task.training,
            **training,
        )
    collect(measured, "test", packed=bitquant.load(work / name, model=task.source.model))
    found = {
        "settings": settings,
        "directory": name,
        "measured": measured,
        "dev": dev,
        "losses": _means(losses),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "minutes": result["seconds"]["training"] / 60,
        "megabytes": result["megabytes"]["weights"],
        "milliseconds": result["milliseconds"],
        "fidelity": result["fidelity"],
    }
    if log:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    return found


@functools.cache
def _prepared(kind: str, setup: Setup) -> tuple[Task, nn.Module, dict]:
    """The task, its teacher, and what the float model measures on the test part."""
    task = TASKS[kind](setup)
    return task, RememberingTeacher(task.source.model), task.score({"float": task.source.model}, "test")


def _means(losses: list[float]) -> list[float]:
    parts = torch.tensor(losses, dtype=torch.float64).tensor_split(min(CURVE, max(1, len(losses))))
    return [part.mean().item() for part in parts if len(part)]


@click.command()
@click.argument("kind", type=click.Choice(list(TASKS)))
@click.option(
    "--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="For weights and results."
)
@click.option(
    "--speech",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A corpus of recordings, to train on and to score; what further ones hold fills samples of training.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=1), default=4.0, show_default=True, help="Longest training sample of hama."
)
@click.option(
    "--decoder-weight",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How much the answers of Whisper's decoder count in the loss.",
)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Append the result as a line of JSON.")
@training(steps=200)
def main(kind, config, work, **options):
    """Distil the encoder KIND and measure it."""
    found = run(kind, config, work, **options)
    names = ("float", "student", "packed")
    rows = [(measure, *(f"{values[name]:.1%}" for name in names)) for measure, values in found["measured"].items()]
    click.echo(tabulate(rows, headers=("", *names)))
    click.echo(f"{found['minutes']:.1f} minutes of training on {found['threads']} threads")


if __name__ == "__main__":
    main()
