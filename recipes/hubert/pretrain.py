"""Pre-training: ``python -m recipes.hubert.pretrain CONFIG --data DATA_DIR --out RUN_DIR``.

On several GPUs, or several machines: ``torchrun --nproc-per-node 8 -m recipes.hubert.pretrain paper --data ...``. The
batch is the same on any number of workers: what they cannot do at once they accumulate. The same command again goes
on where a run stopped.
"""

from __future__ import annotations

from pathlib import Path

import click

from bitquant.cli.progress import TrainingBar

from .progress import watched
from .training.config import load_pretraining
from .training.loop import Pretraining
from .training.workers import PARALLEL, Workers, joined


@click.command()
@click.argument("config")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), required=True, help="Made by prepare.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory of the run.")
@click.option("--model", help="One of the configuration's models. Default: its first.")
@click.option("--iterations", default=1, show_default=True, help="2 clusters the first model and trains anew.")
@click.option("--parallel", type=click.Choice(PARALLEL), default="ddp", show_default=True, help="Under torchrun.")
@click.option("--device", help="Default: a GPU where there is one.")
@click.option("--readers", default=0, show_default=True, help="Processes that read audio ahead, for each worker.")
def main(config: str, data: Path, out: Path, model: str | None, iterations: int, parallel: str, device: str | None,
         readers: int) -> None:  # fmt: skip
    """Pre-train a model of CONFIG: paper, laptop, or the path of a TOML file."""
    try:
        settings = load_pretraining(config)
        model = model or next(iter(settings.models))
        with joined(), TrainingBar() as bar:
            workers = Workers(parallel, device)
            quiet = {} if not workers.first else {"progress": bar, "say": bar.say, "watch": watched}
            last = Pretraining(
                settings, model, data, out, iterations=iterations, workers=workers, readers=readers, **quiet
            ).run()
            if workers.first:
                bar.say(f"wrote {last}")
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; the same command goes on from here") from None


if __name__ == "__main__":
    main()
