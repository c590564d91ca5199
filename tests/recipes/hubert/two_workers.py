"""What each of two processes does in ``test_hubert_workers``, under torchrun: DIRECTORY of the test."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_hubert_workers import CONFIG, Stop, config, stop_after, whole_batches

from recipes.hubert import HubertForPretraining
from recipes.hubert.data.batches import MicroBatch
from recipes.hubert.training.checkpoint import model_state
from recipes.hubert.training.loop import Pretraining
from recipes.hubert.training.update import Updater
from recipes.hubert.training.workers import Workers, joined


def updates_of_halves(root: Path) -> None:
    """Each worker takes half of every batch."""
    torch.manual_seed(0)
    workers = Workers("ddp", "cpu")
    updater = Updater(HubertForPretraining(CONFIG), workers, config().optimization, seed=0)
    losses = []
    for number, batch in enumerate(whole_batches()):
        half = MicroBatch(*(part[2 * workers.rank : 2 * workers.rank + 2] for part in batch))
        losses.append(updater(number, [(0, half)], 1.0).loss)
    state = model_state(updater)
    if workers.first:
        save_file(state | {"losses": torch.tensor(losses)}, root / "halves.safetensors")


def main(root: Path) -> None:
    torch.set_num_threads(1)
    with joined():
        updates_of_halves(root)
        Pretraining(config(), "drops", root / "data", root / "ddp", workers=Workers("ddp", "cpu")).run()
        Pretraining(config(), "drops", root / "data", root / "fsdp", workers=Workers("fsdp", "cpu")).run()
        try:
            interrupted = Pretraining(config(), "drops", root / "data", root / "moved", workers=Workers("fsdp", "cpu"),
                                      progress=stop_after(3))  # fmt: skip
            interrupted.run()
        except Stop:
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
