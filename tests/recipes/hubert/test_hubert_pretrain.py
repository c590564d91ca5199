"""Pre-training: the loss by its formula, resume at any step, errors, the command line, binarizing."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("kaldi_native_fbank")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from click.testing import CliRunner  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from speech_data import data_directory  # noqa: E402
from test_hubert_workers import CONFIG, Stop, config, stop_after  # noqa: E402

import bitquant  # noqa: E402
from benchmarks import fast  # noqa: E402
from recipes.hubert import Hubert, HubertForPretraining  # noqa: E402
from recipes.hubert.pretrain import main  # noqa: E402
from recipes.hubert.run import main as run_main  # noqa: E402
from recipes.hubert.saved import load_pretrained  # noqa: E402
from recipes.hubert.training.config import load_pretraining  # noqa: E402
from recipes.hubert.training.log import Log  # noqa: E402
from recipes.hubert.training.loop import Pretraining  # noqa: E402
from recipes.hubert.training.workers import Workers  # noqa: E402

TOML = """
checkpoint_every = 1
validate_every = 2
log_every = 1
[models.small]
front_end = "fastconv_small"
encoder = {{kind = "transformer", layers = 2, dim = 32, heads = 4, ffn = 64}}
[[iterations]]
updates = {updates}
clusters = 8
share = 1.0
[[iterations]]
updates = 2
clusters = 6
layer = 1
share = 1.0
[batching]
min_seconds = 0.8
max_seconds = 1.5
batch_seconds = 3.0
[optimization]
batches = 2
precision = "fp32"
[quantization]
steps = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_directory(tmp_path_factory.mktemp("data"), [0.9, 1.0, 1.2, 1.4] * 5)[0]


@pytest.fixture
def toml(tmp_path):
    def write(updates):
        file = tmp_path / "config.toml"
        file.write_text(TOML.format(updates=updates))
        return str(file)

    return write


def pretraining(data, out, **kwargs):
    changes = kwargs.pop("changes", {})
    return Pretraining(config(**changes), "drops", data, out, workers=Workers(device="cpu"), **kwargs)


def weights(out):
    return load_file(out / "iteration-1" / "model" / "model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# the loss


@torch.no_grad()
def test_loss_by_its_formula():
    """-sum over masked frames of log softmax(cos(A o, e) / 0.1), plus 10 x mean square of the features x masked."""
    torch.manual_seed(0)
    model = HubertForPretraining(CONFIG).eval()
    wave, labels = 0.1 * torch.randn(2, 4_000), torch.randint(8, (2, 12))
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 2:5], mask[1, 7] = True, True
    out = model(wave, None, mask, (labels,))
    features = model.hubert.extract(wave)[0].double().numpy()
    frames = model.hubert(wave, mask=mask).last_hidden_state.double().numpy()
    weight, bias = (p.double().numpy() for p in (model.head.final_proj.weight, model.head.final_proj.bias))
    classes = model.head.label_embeddings[0].double().numpy()
    total = 0.0
    for b, t in ((0, 2), (0, 3), (0, 4), (1, 7)):
        p = weight @ frames[b, t] + bias
        logits = np.array([p @ e / (np.linalg.norm(p) * np.linalg.norm(e)) / 0.1 for e in classes])
        total += math.log(np.exp(logits).sum()) - logits[labels[b, t]]
    expected = total + 10 * (features**2).mean() * 4
    assert out.masked == 4 and out.loss.item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_leaves_cosines_in_fp32():
    torch.manual_seed(0)
    model, seen = HubertForPretraining(CONFIG).eval(), []
    model.head.register_forward_hook(lambda module, args, logits: seen.extend((args[0].dtype, logits[0].dtype)))
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 3:6] = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(0.1 * torch.randn(1, 4_000), None, mask, (torch.zeros(1, 12, dtype=torch.long),))
    assert seen == [torch.float32, torch.float32] and out.loss.dtype == torch.float32


# resume


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    pretraining(data, out).run()
    return out


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 5])
def test_a_run_stopped_at_any_update_ends_in_the_same_weights(updates, data, uninterrupted, tmp_path):
    with pytest.raises(Stop):
        pretraining(data, tmp_path, progress=stop_after(updates)).run()
    first = []
    pretraining(data, tmp_path, progress=lambda state: first.append(state["step"])).run()
    assert first[0] == updates // 2 * 2 - 2 * (updates % 2 == 0) + 1  # stopped before the checkpoint of an even update
    assert equal(weights(tmp_path), weights(uninterrupted))
    ours, theirs = ([(r["update"], r["split"], r["loss"]) for r in Log(o).rows()] for o in (tmp_path, uninterrupted))
    assert ours == theirs


def test_a_killed_process_goes_on_to_the_same_weights(data, toml, tmp_path):
    arguments = [toml(6), "--data", str(data), "--device", "cpu", "--out"]
    command = [sys.executable, "-m", "recipes.hubert.pretrain", *arguments]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(root)}
    started = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "iteration-1" / "training.safetensors"
    while not checkpoint.exists() and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL and checkpoint.exists()
    for name in ("killed", "whole"):
        result = CliRunner().invoke(main, [*arguments, str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_changed_settings_are_refused_and_named(data, uninterrupted):
    slower = dataclasses.replace(config().optimization, lr=1e-4)
    with pytest.raises(ValueError, match=r"optimization\.lr: 0\.001 then, 0\.0001 now"):
        pretraining(data, uninterrupted, changes={"optimization": slower})


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(data, tmp_path):
    def poison(state):
        if state["step"] == 3:
            run.poisoned = True

    run = pretraining(data, tmp_path, progress=poison)
    run.poisoned, batches = False, run.batches

    class Poisoned:
        """The same micro-batches, with NaN in the audio from the fourth update on."""

        def __init__(self, made):
            self.made, self.targets, self.utterances = made, made.targets, made.utterances

        def __len__(self):
            return len(self.made)

        def __getitem__(self, index):
            batch = self.made[index]
            return batch._replace(waves=batch.waves * float("nan")) if run.poisoned else batch

    run.batches = lambda split, number: Poisoned(batches(split, number))
    with pytest.raises(FloatingPointError, match=r"nan at update 4, in a micro-batch with \d.*last good checkpoint is"):
        run.run()
    kept = load_file(tmp_path / "iteration-1" / "training.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


# configuration


def test_the_papers_configuration():
    paper = load_pretraining("paper")
    assert [(i.updates, i.clusters, i.layer) for i in paper.iterations] == [(250_000, 100, None), (600_000, 500, 6)]
    batching, optimization = paper.batching, paper.optimization
    assert (batching.min_seconds, batching.max_seconds, batching.batch_seconds) == (2.0, 250_000 / 16_000, 36.5)
    assert (batching.mask_probability, batching.mask_span, batching.min_spans) == (0.8, 10, 2)
    assert (optimization.batches, optimization.lr, optimization.betas) == (32, 5e-4, (0.9, 0.98))
    assert (optimization.eps, optimization.weight_decay, optimization.clip) == (1e-6, 0.01, 10.0)
    assert round(paper.iterations[0].updates * optimization.warmup) == 20_000
    for name in paper.models:
        assert paper.model(name, 500).classes == (500,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "at least one model"),
        ("speed = 1", "no field 'speed'"),
        ("[optimization]\nlr = 'fast'", "lr must be a value such as 0.0005; got 'fast'"),
        ("[optimization]\nprecision = 'fp8'", "precision must be one of"),
        ("[models]\na = 'b'\n[[iterations]]\nupdates = 1\nclusters = 8\nlayer = 2", "first iteration clusters"),
        ("[[iterations]]\nupdates = 1", "lacks clusters"),
        ("= 1", "Invalid"),
    ],
)
def test_bad_configurations_are_refused(text, problem, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=problem):
        load_pretraining(tmp_path / "bad.toml")


def test_bad_requests_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="configurations: laptop, paper"):
        load_pretraining("desktop")
    with pytest.raises(ValueError, match="no model 'x' in this configuration; models: drops"):
        Pretraining(config(), "x", data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"has 1 iteration\(s\), not 2"):
        Pretraining(config(), "drops", data, tmp_path / "out", iterations=2)
    result = CliRunner().invoke(main, ["laptop", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "holds no manifest" in result.output
    assert not (tmp_path / "out").exists()


# the whole recipe


def test_the_whole_recipe(data, toml, tmp_path):
    out = tmp_path / "out"
    command = ["--preset", toml(2), "--out", str(out), "--audio", str(data.parent / "audio"), "--control", "1"]
    transcripts = data.parent / "audio" / "manifest.jsonl"
    rows = [{"path": file.name, "text": "tone"} for file in sorted((data.parent / "audio").glob("*.wav"))]
    transcripts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(run_main, command)
    transcripts.unlink()
    assert result.exit_code == 0, result.output
    assert "small W1A1" in result.output and "shuffled labels" in result.output
    found = json.loads((out / "results.json").read_text())["small"]
    assert found["iteration"] == 2 and 0 < found["packed"]["mb"] < found["float"]["mb"]
    assert {"pretrain", "control", "quantize"} == set(found["minutes"]) and found["control"] > 0
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and (out / "small" / "curves.png").exists()
    model = load_pretrained(out / "small" / "iteration-2" / "model")
    assert model.config.classes == (6,)
    packed = bitquant.load(out / "small" / "w1a1", model=Hubert(model.config))
    assert packed(torch.zeros(1, 4_000)).last_hidden_state.shape == (1, 12, 32)
    _, as_it_is, *modes = fast.measure(out / "small", out / "data", load_pretraining(toml(2)))
    assert as_it_is["masked accuracy"] == found["packed"]["accuracy"] and as_it_is["frames"] > 0
    assert modes[0]["form"] == "exact" and all(0 <= row["flipped"] < 0.2 for row in modes)
    before = (out / "results.json").read_text()
    again = CliRunner().invoke(run_main, command)  # everything is there
    assert again.exit_code == 0 and json.loads(before)["small"]["float"] == found["float"]
