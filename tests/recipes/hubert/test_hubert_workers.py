"""Two processes do what one does: DDP, FSDP2, and a run that moves between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("sklearn")
from safetensors.torch import load_file  # noqa: E402
from speech_data import data_directory  # noqa: E402

from recipes.hubert import HubertConfig, HubertForPretraining  # noqa: E402
from recipes.hubert.data.batches import Batching, MicroBatch  # noqa: E402
from recipes.hubert.masking import span_mask  # noqa: E402
from recipes.hubert.training.config import Iteration, Optimization, PretrainingConfig  # noqa: E402
from recipes.hubert.training.loop import Pretraining  # noqa: E402
from recipes.hubert.training.update import Updater  # noqa: E402
from recipes.hubert.training.workers import Workers  # noqa: E402

ENCODER = {"kind": "transformer", "layers": 2, "dim": 32, "heads": 4, "ffn": 64}
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}
CONFIG = HubertConfig(encoder={**ENCODER, **STILL}, front_end="fastconv_small", dropout=0.0, input_dropout=0.0,
                      classes=(8,))  # fmt: skip


class Stop(Exception):
    pass


def stop_after(updates):
    """A ``progress`` that ends the run after so many updates."""

    def progress(state):
        if state["step"] == updates:
            raise Stop

    return progress


def config(**changes):
    """Four micro-batches an update; layers drop often, and there is dropout."""
    drops = {"encoder": {**ENCODER, "layer_drop": 0.4}, "front_end": "fastconv_small"}
    settings = {
        "models": {"drops": drops},
        "iterations": (Iteration(5, 8, share=1.0),),
        "batching": Batching(min_seconds=0.8, max_seconds=1.5, batch_seconds=3.0),
        "optimization": Optimization(batches=4, lr=1e-3, precision="fp32"),
        "checkpoint_every": 2,
        "validate_every": 5,
        "log_every": 1,
    }
    return PretrainingConfig(**{**settings, **changes})


def whole_batches():
    """Three batches of four utterances of equal length, with equally many masked frames."""
    made = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        waves = 0.1 * torch.randn(4, 16_000, generator=generator)
        labels = torch.randint(8, (4, 49), generator=generator)
        made.append(MicroBatch(waves, labels, span_mask([49] * 4, 49, generator=generator), list("abcd")))
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory in which two processes have done their part."""
    folder = tmp_path_factory.mktemp("workers")
    data_directory(folder, [0.9, 1.0, 1.2, 1.4] * 5)
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1]), str(here.parents[2])]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(here / "two_workers.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights(directory):
    return load_file(directory / "iteration-1" / "model" / "model.safetensors")


def close(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def alone(root):
    out = root / "alone"
    Pretraining(config(), "drops", root / "data", out, workers=Workers(device="cpu")).run()
    return weights(out)


def test_half_a_batch_each_is_the_whole_batch(root):
    torch.manual_seed(0)
    updater = Updater(HubertForPretraining(CONFIG), Workers(device="cpu"), config().optimization, seed=0)
    losses = [updater(number, [(0, batch)], 1.0).loss for number, batch in enumerate(whole_batches())]
    found = load_file(root / "halves.safetensors")
    torch.testing.assert_close(found.pop("losses"), torch.tensor(losses), atol=1e-5, rtol=0)
    close({name: tensor.detach() for name, tensor in updater.model.state_dict().items()}, found)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_train_what_one_trains_by_accumulation(parallel, root, alone):
    """Dropout and dropped layers included: they follow from the micro-batch, not from who computes it."""
    close(alone, weights(root / parallel))


def test_a_run_of_two_workers_goes_on_alone(root, alone):
    assert not (root / "moved" / "iteration-1" / "model").exists()
    Pretraining(config(), "drops", root / "data", root / "moved", workers=Workers(device="cpu")).run()
    close(alone, weights(root / "moved"))


def test_batches_that_cannot_be_shared_are_refused(root):
    workers = Workers(device="cpu")
    workers.count = 3
    with pytest.raises(ValueError, match="4 micro-batches an update cannot be shared evenly by 3 workers"):
        Pretraining(config(), "drops", root / "data", root / "other", workers=workers)
