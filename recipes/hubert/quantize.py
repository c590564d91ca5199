"""Pre-trained -> 1-bit: ``python -m recipes.hubert.quantize RUN_DIR --data DATA_DIR``.

Distils the trunk of the run's last model from itself on unlabelled audio, half of it masked as in pre-training, and
packs it. Measured before and after: masked prediction of held-out audio (the head stays in float), storage, time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from tabulate import tabulate
from torch import nn

import bitquant
from bitquant.atomic import replacing_file
from bitquant.cli.progress import TrainingBar
from bitquant.measure import milliseconds

from .data.batches import MicroBatches
from .data.manifest import RATE, read_manifest
from .saved import is_pretrained, load_pretrained
from .training.config import PretrainingConfig, Quantization, load_pretraining
from .training.loop import MAX_VALIDATION, Pretraining
from .training.score import evaluate
from .training.workers import Workers

PACKED, RESULTS = "w1a1", "results.json"
SECONDS = 10  # of the audio whose time is measured


class Unlabelled:
    """Audio as ``distill`` takes it, without end: ``input_values`` (B, N) and ``mask`` (B, T), in every other batch
    with nothing masked, as a model is used."""

    def __init__(self, batches: MicroBatches):
        self.batches = batches

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = self.batches[index]
        return {"input_values": batch.waves, "mask": batch.mask if index % 2 == 0 else torch.zeros_like(batch.mask)}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        index = 0
        while True:
            yield self[index]
            index += 1


def binarize(
    trunk: nn.Module,
    audio: Unlabelled,
    settings: Quantization,
    checkpoint: Path,
    progress: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """The packed 1-bit form of a trunk, which stays as it is; an interrupted training goes on from ``checkpoint``."""
    student = copy.deepcopy(trunk)
    config = bitquant.QuantConfig.preset(settings.preset, depthwise="binary")  # every layer, as in the paper
    bitquant.quantize_(student, config, audio[0])
    bitquant.distill(
        student, trunk, audio, steps=settings.steps, chain=settings.chain, lr=settings.lr, scale_lr=settings.lr,
        checkpoint=checkpoint, resume=True, progress=progress,
    )  # fmt: skip
    bitquant.convert_(student)
    return student


def quantize(
    config: PretrainingConfig,
    run: Path,
    data: Path,
    *,
    chosen: str,
    progress: Callable[[dict[str, Any]], None] = lambda state: None,
) -> dict[str, Any]:
    """Writes ``run/w1a1`` and ``run/results.json``.

    Args:
        run: directory of a finished pre-training. data: that it was trained on. chosen: which of the config's models.

    Returns:
        What is in ``results.json``: iteration, ``unigram`` (bits), and ``float`` and ``packed`` with ``loss`` (bits),
        ``accuracy``, ``mb`` (of weights) and ``ms``.

    Raises:
        ValueError: there is no finished pre-training.
    """
    numbers = [n for n in range(len(config.iterations), 0, -1) if is_pretrained(run / f"iteration-{n}" / "model")]
    if not numbers:
        raise ValueError(f"{run} holds no finished pre-training")
    pretraining = Pretraining(config, chosen, data, run, iterations=numbers[0], workers=Workers(device="cpu"))
    valid = pretraining.batches("valid", numbers[0])
    train = [u for u in read_manifest(data) if u.split == "train"]
    model = load_pretrained(run / f"iteration-{numbers[0]}" / "model")
    audio = Unlabelled(MicroBatches(train, None, config.batching, seed=config.seed))
    packed = binarize(model.hubert, audio, config.quantization, run / f"{PACKED}.training", progress)
    bitquant.save(packed, run / PACKED, overwrite=True)
    models = {"float": model.hubert, "packed": packed}
    wave = 0.1 * torch.randn(1, SECONDS * RATE, generator=torch.Generator().manual_seed(0))
    times = milliseconds(models, {"input_values": wave}, seconds=5.0)
    results = {"iteration": numbers[0], "unigram": valid.targets.entropy(valid.utterances)}
    for name, trunk in models.items():
        model.hubert = trunk
        count = min(len(valid), MAX_VALIDATION)
        score = evaluate(model, ((valid[i], True) for i in range(count)), pretraining.workers, "fp32")
        stored = sum(tensor.nbytes for tensor in trunk.state_dict().values()) / 1e6
        results[name] = {"loss": score.loss, "accuracy": score.accuracy, "mb": stored, "ms": times[name]}
    with replacing_file(run / RESULTS) as fresh:
        fresh.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """Model name -> what ``quantize`` returned: one row float, one row 1-bit."""
    rows = []
    for name, found in results.items():
        for kind, label in (("float", name), ("packed", f"{name} W1A1")):
            part = found[kind]
            rows.append((label, f"{part['accuracy']:.1%}", f"{part['loss']:.2f}", f"{2 ** part['loss']:.1f}",
                         f"{2 ** found['unigram']:.1f}", f"{part['mb']:.2f}", f"{part['ms']:.0f}"))  # fmt: skip
    headers = ("model", "masked accuracy", "bits", "perplexity", "unigram", "MB", f"ms / {SECONDS} s")
    return tabulate(rows, headers, disable_numparse=True, tablefmt="github")


@click.command()
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), required=True, help="Made by prepare.")
@click.option("--config", default="laptop", show_default=True, help="That the run was made with.")
@click.option("--model", help="One of its models. Default: its first.")
def main(run: Path, data: Path, config: str, model: str | None) -> None:
    """Binarize the last model of RUN."""
    try:
        settings = load_pretraining(config)
        model = model or next(iter(settings.models))
        with TrainingBar() as bar:
            results = quantize(settings, run, data, chosen=model, progress=bar)
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(table({model: results}))
    click.echo(f"wrote {run / PACKED}")


if __name__ == "__main__":
    main()
