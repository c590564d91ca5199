"""Whether accuracy depends on how long the input is: phone error of hama over the same speech in longer utterances.

    python -m benchmarks.accuracy.lengths --weights DIR --data SPEECH/asterisk-en [CHECKPOINT ...]

The recordings of the test part, in the order of their names, are joined into utterances of about 2, 5, 10 and 30
seconds: at every length the same sounds and the same text are scored, so that only the length differs.
"""

from collections.abc import Iterable
from pathlib import Path

import click
import jiwer
import numpy as np
import torch
from tabulate import tabulate
from torch import nn

import bitquant
from benchmarks.accuracy.score import LONGEST, hama, pronunciation, scorable
from bitquant.data import read_data
from bitquant.sources import open_source

LENGTHS = (2, 5, 10, 30)  # seconds


def joined(lengths: Iterable[float], target: float) -> list[list[int]]:
    """Indices of recordings of these lengths, in order, in groups of ``target`` on average, each of one or more."""
    groups, total = [], 0.0
    for index, length in enumerate(lengths):
        # a recording belongs to the stretch in which its middle lies
        while len(groups) <= (total + length / 2) / target:
            groups.append([])
        groups[-1].append(index)
        total += length
    return [group for group in groups if group]


@torch.no_grad()
def error_rates(models: dict[str, nn.Module], waves: list[np.ndarray], said: list[str], hear) -> dict[str, float]:
    """Phone error rate of every model over utterances (samples,) and their phones."""
    heard = {
        name: [hear(model.eval(), {"waveform": torch.from_numpy(wave)[None]})[0] for wave in waves]
        for name, model in models.items()
    }
    return {name: jiwer.cer(said, phones) for name, phones in heard.items()}


@click.command()
@click.argument("checkpoints", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path), help="DIR of the loader.")
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(checkpoints, weights, data):
    """Phone error rates of the float model and CHECKPOINTS of it, by the length of the utterances."""
    source = open_source("benchmarks.accuracy.hama:encoder", weights / "model.safetensors")
    models = {"float": source.model}
    models |= {str(folder): bitquant.load(folder, model=source.model) for folder in checkpoints}
    hear, pronounce = hama(source).hear, pronunciation()
    recordings, rows = read_data(data, source, max_seconds=LONGEST), []
    expected = scorable(recordings, data.resolve(), "test")
    phones, seconds = [pronounce(text) for text in expected.values()], [recordings.seconds[name] for name in expected]
    waves = [recordings.collate([name], None)["waveform"][0].numpy() for name in expected]
    for length in LENGTHS:
        groups = joined(seconds, length)
        said = ["".join(phones[i] for i in group) for group in groups]
        rates = error_rates(models, [np.concatenate([waves[i] for i in group]) for group in groups], said, hear)
        mean = sum(len(wave) for wave in waves) / source.model.sampling_rate / len(groups)
        rows.append((f"{mean:.1f}", len(groups), *(f"{100 * rate:.1f} %" for rate in rates.values())))
    click.echo(f"phone error rate by the mean length of utterances; {len(expected)} recordings in all")
    click.echo(tabulate(rows, headers=("seconds", "utterances", *models), tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
