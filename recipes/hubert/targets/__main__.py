"""``python -m recipes.hubert.targets DATA_DIR``: what pre-training predicts.

MFCC for the first iteration, ``--model RUN_DIR/iteration-1/model --layer 6`` for the second. ``--clusters
DIR`` labels other data with clusters that were fitted before.
"""

from __future__ import annotations

from pathlib import Path

import click
from tabulate import tabulate

from ..data.manifest import read_manifest
from ..progress import watched
from . import make_targets
from .clusters import Clusters
from .layer import LayerFeatures
from .mfcc import Mfcc


@click.command()
@click.argument("data", type=click.Path(file_okay=False, path_type=Path))
@click.option("--model", type=click.Path(file_okay=False, path_type=Path), help="Cluster a layer of it, not MFCC.")
@click.option("--layer", type=int, default=6, show_default=True, help="Of the model.")
@click.option("--clusters", default="100", show_default=True, help="How many, or a directory with a fitted model.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True,
              help="Of the training utterances, to fit on.")  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=0, show_default=True, help="Processes that read.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Default: DATA/targets/NAME.")
def main(data: Path, model: Path | None, layer: int, clusters: str, share: float, seed: int, workers: int, device: str,
         out: Path | None) -> None:  # fmt: skip
    """Label every frame of DATA with a cluster."""
    try:
        utterances = read_manifest(data)
        features = LayerFeatures(model, layer, device=device) if model else Mfcc()
        wanted = int(clusters) if clusters.isdigit() else Clusters.load(clusters)
        if isinstance(wanted, Clusters) and wanted.centres.shape[1] != features.dims:
            raise ValueError(f"{clusters} has centres of {wanted.centres.shape[1]} numbers, not {features.dims}")
        count = wanted if isinstance(wanted, int) else len(wanted)
        out = out or data / "targets" / f"{features.name}-{count}"
        facts = make_targets(
            out, utterances, features, wanted, share=share, seed=seed, workers=workers, watch=watched,
        )  # fmt: skip
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    rows = [(split, part["frames"], part["entropy"]) for split, part in facts["splits"].items()]
    click.echo(tabulate(rows, ("split", "labels", "entropy, bit"), floatfmt=".3f"))
    if facts["quality"]:
        click.echo(tabulate(facts["quality"].items(), ("clusters against phones", ""), floatfmt=".3f"))
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
