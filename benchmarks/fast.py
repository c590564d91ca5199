"""What ``optimize_``'s modes cost a trained 1-bit model: masked prediction of held-out speech.

    python -m benchmarks.fast RUN [RUN ...] --data DATA_DIR [--config NAME] [--json]

Each RUN is one that ``python -m recipes.hubert.pretrain`` and then ``python -m recipes.hubert.quantize`` made from
DATA_DIR; its folder is named after the model, one of the configuration's.
"""

import copy
import json
from pathlib import Path

import click
import torch
from tabulate import tabulate

import bitquant
from benchmarks.waveform import bits
from bitquant import processor
from bitquant.json_object import read_object
from recipes.hubert.quantize import PACKED, RESULTS
from recipes.hubert.saved import load_pretrained
from recipes.hubert.training.config import load_pretraining
from recipes.hubert.training.loop import MAX_VALIDATION, Pretraining
from recipes.hubert.training.score import evaluate
from recipes.hubert.training.workers import Workers

FORMS = ("float", "packed", "exact", "fast")
BATCHES = 10  # whose bits are compared


def forms(run, iteration):
    """The model with its float trunk, and trunks by name: float, packed, and packed in each mode."""
    model = load_pretrained(run / f"iteration-{iteration}" / "model").requires_grad_(False)
    trunks = {"float": model.hubert, "packed": bitquant.load(run / PACKED, model=copy.deepcopy(model.hubert)).eval()}
    for mode in FORMS[2:] if processor.bfloat16_is_fast() else FORMS[2:3]:
        trunks[mode] = copy.deepcopy(trunks["packed"])
        bitquant.optimize_(trunks[mode], mode)
    return model, trunks


def flipped(reference, trunk, batches):
    """Share of the bits of all binarizers that a mode changes."""
    changed = total = 0
    for batch in batches:
        for before, after in zip(bits(reference, batch.waves)[0], bits(trunk, batch.waves)[0], strict=True):
            changed, total = changed + int((before != after).sum()), total + before.numel()
    return changed / total


@torch.inference_mode()
def measure(run, data, config):
    """Rows of the table of one run."""
    iteration = read_object(run / RESULTS)["iteration"]
    pretraining = Pretraining(config, run.name, data, run, iterations=iteration, workers=Workers(device="cpu"))
    valid = pretraining.batches("valid", iteration)
    batches = [valid[i] for i in range(min(len(valid), MAX_VALIDATION))]
    model, trunks = forms(run, iteration)
    rows = []
    for name, trunk in trunks.items():
        model.hubert = trunk
        score = evaluate(model, ((batch, True) for batch in batches), pretraining.workers, "fp32")
        row = {"model": run.name, "form": name, "masked accuracy": score.accuracy, "bits": score.loss}
        if name in FORMS[2:]:
            row["flipped"] = flipped(trunks["packed"], trunk, batches[:BATCHES])
        rows.append(row | {"frames": score.masked})
    return rows


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), required=True, help="Made by prepare.")
@click.option("--config", default="laptop", show_default=True, help="That the runs were made with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(runs, data, config, as_json):
    """Score the packed models of RUNS as they are and in every mode."""
    try:
        rows = [row for run in runs for row in measure(run, data, load_pretraining(config))]
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    cells = [
        (row["model"], row["form"], f"{row['masked accuracy']:.2%}", f"{row['bits']:.4f}",
         f"{row['flipped']:.4%}" if "flipped" in row else "", row["frames"])
        for row in rows
    ]  # fmt: skip
    click.echo(tabulate(cells, ("model", "form", "masked accuracy", "bits", "bits flipped", "frames"), "github",
                        disable_numparse=True))  # fmt: skip


if __name__ == "__main__":
    main()
