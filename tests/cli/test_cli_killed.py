"""``bitquant quantize`` killed around its save, two at once, and a training directory that somebody removes."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import save_file

import bitquant
from bitquant.reservation import reserved

ANSWER = {"fidelity": {"cosine": 1.0, "top1": 1.0, "top10": 1.0}, "identical": True, "milliseconds": []}


class Killed(BaseException):
    """Like a SIGKILL: nobody gets to handle it."""


@pytest.fixture
def quantize(bitquant_cli, tmp_path, monkeypatch):
    monkeypatch.setattr("bitquant.pipeline.measure_fresh", lambda *arguments, **options: ANSWER)
    torch.manual_seed(0)
    save_file(tiny_models.mlp().state_dict(), tmp_path / "weights.safetensors")
    np.savez(tmp_path / "rows.npz", features=np.random.default_rng(0).normal(size=(100, 16)))
    where = ("--weights", tmp_path / "weights.safetensors", "--data", tmp_path / "rows.npz", "--batch-size", 8)

    def run(*arguments, out="out"):
        return bitquant_cli("quantize", "tiny_models:mlp", *where, "--out", tmp_path / out, "--steps", 3, *arguments)

    return run


@pytest.fixture
def killed(quantize, monkeypatch):
    """A run killed after its save, while it measured."""

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("bitquant.pipeline.measure_fresh", kill)
        patch.setattr("bitquant.training_directory.TrainingDirectory.leave", lambda self: None)
        with pytest.raises(Killed):
            quantize()


def no_training(monkeypatch):
    monkeypatch.setattr("bitquant.distillation.trainer._Stage._step", lambda *a: pytest.fail("trains"))


def listing(folder):
    return sorted(name for name in os.listdir(folder) if name not in ("weights.safetensors", "rows.npz"))


def test_a_finished_run_is_recognised(quantize, killed, tmp_path, monkeypatch):
    assert listing(tmp_path) == ["out", "out.training"]
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in (tmp_path / "out").iterdir()}
    no_training(monkeypatch)
    result = quantize("--resume")
    assert result.exit_code == 0, result.output
    assert "bit for bit equal" in result.stdout
    assert {file.name: (file.stat().st_ino, file.read_bytes()) for file in (tmp_path / "out").iterdir()} == before
    assert listing(tmp_path) == ["out"]


def test_another_checkpoint_there_is_not_taken_for_it(quantize, killed, tmp_path, monkeypatch):
    assert quantize("--preset", "bit-ref", out="other").exit_code == 0
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "other").rename(tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    no_training(monkeypatch)
    result = quantize("--resume")
    assert result.exit_code == 1 and "is not what the training in" in result.stderr.splitlines()[-1], result.output
    assert (tmp_path / "out" / "config.json").read_bytes() == before
    assert quantize("--resume", "--overwrite").exit_code == 0
    assert (tmp_path / "out" / "config.json").read_bytes() != before
    assert listing(tmp_path) == ["out"]


def test_an_unfinished_training_overwrites_nothing_unasked(quantize, killed, tmp_path):
    (tmp_path / "out.training" / "trained").unlink()
    result = quantize("--resume")
    assert result.exit_code == 1 and "exists: choose another place or overwrite it" in result.stderr


def test_the_second_of_two_runs_is_refused(quantize, tmp_path, monkeypatch):
    monkeypatch.setattr("bitquant.pipeline.distill", lambda *a, **k: pytest.fail("trains"))
    other = "from bitquant.reservation import reserved; import sys, time\nwith reserved(sys.argv[1]):\n"
    other += " print('here', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", other, str(tmp_path / "out")], stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        for options in ((), ("--overwrite",), ("--resume",)):
            result = quantize(*options)
            assert result.exit_code == 1 and "another process is writing" in result.stderr
            assert "reading" not in result.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_training_directory_that_is_removed_meanwhile(quantize, tmp_path, monkeypatch, moment):
    from bitquant.distillation.meter import Meter

    update, steps = Meter.update, []

    def removing(meter, *arguments):
        steps.append(1)
        if len(steps) == moment:
            shutil.rmtree(tmp_path / "out.training")
        return update(meter, *arguments)

    monkeypatch.setattr(Meter, "update", removing)
    result = quantize("--checkpoint-every", 1)
    assert result.exit_code == 0, result.output
    assert listing(tmp_path) == ["out"]


def test_removed_after_training(quantize, tmp_path, monkeypatch):
    from bitquant import pipeline

    report = pipeline.report

    def removing(*arguments):
        shutil.rmtree(tmp_path / "out.training")
        return report(*arguments)

    monkeypatch.setattr("bitquant.pipeline.report", removing)
    assert quantize().exit_code == 0
    assert listing(tmp_path) == ["out"]
    bitquant.load(tmp_path / "out", model=tiny_models.mlp())


def test_what_a_kill_left_is_gone_after_the_next_run(quantize, tmp_path):
    (tmp_path / f".out.{'0' * 32}.new").mkdir()
    (tmp_path / ".out.lock").write_text("")
    assert quantize().exit_code == 0
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["x" * 250, "loop"])
def test_names_are_tried_before_anything_is_read(quantize, tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    result = quantize(out=name)
    assert result.exit_code == 1 and "reading" not in result.stderr
    assert "File name too long" in result.stderr or "loop of symbolic links" in result.stderr
    (tmp_path / "out.training").symlink_to("loop")
    result = quantize()
    assert result.exit_code == 1 and "out.training is in the way" in result.stderr and "reading" not in result.stderr


def test_reserved_by_the_run_itself(quantize, tmp_path, monkeypatch):
    """The lock is held until what was saved is measured."""
    held = []

    def measuring(*arguments, **options):
        held.append((tmp_path / ".out.lock").exists())
        return ANSWER

    monkeypatch.setattr("bitquant.pipeline.measure_fresh", measuring)
    assert quantize().exit_code == 0 and held == [True]
    with reserved(tmp_path / "out"):
        pass
