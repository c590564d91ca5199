"""Unfinished trainings on the command line: kept, refused, gone on with, removed."""

import errno
import json
import os
import re

import pytest
from safetensors.torch import load_file

from bitquant.distillation.state import read_tensors, write_tensors

pytest.importorskip("transformers")
CHAIN = ("--chain", "w1a2,w1a1", "--stage-teacher", "previous", "--checkpoint-every", 2)


class Interrupter:
    """Presses Ctrl-C at the n-th training step of all stages."""

    def __init__(self, monkeypatch, at):
        from bitquant.distillation.meter import Meter

        self.steps, update = 0, Meter.update

        def counting(meter, *arguments):
            self.steps += 1
            if self.steps == at:
                os.kill(os.getpid(), 2)
            return update(meter, *arguments)

        monkeypatch.setattr(Meter, "update", counting)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    same = {"cosine": 1.0, "top1": 1.0, "top10": 1.0}
    answer = {"fidelity": same, "identical": True, "milliseconds": []}
    monkeypatch.setattr("bitquant.pipeline.measure_fresh", lambda *arguments, **options: answer)


@pytest.fixture
def quantize(bitquant_cli, tiny_bert, text_file, tmp_path):
    def run(*arguments, out="out", steps=4):
        where = ("--data", text_file, "--out", tmp_path / out, "--steps", steps, "--batch-size", 4)
        return bitquant_cli("quantize", tiny_bert, *where, *arguments)

    return run


@pytest.fixture
def interrupted(quantize, monkeypatch):
    """A run of ``CHAIN`` stopped in its second stage."""
    with monkeypatch.context() as patch:
        Interrupter(patch, at=7)
        result = quantize(*CHAIN)
    assert result.exit_code == 130, result.output
    return result


def tensors(directory):
    return load_file(directory / "bitquant.safetensors")


def test_goes_on_to_the_same_weights(quantize, interrupted, tmp_path):
    assert re.search(r"the training so far is in .*out.training: .* --resume goes on", interrupted.stderr)
    assert not (tmp_path / "out").exists()
    resumed = quantize(*CHAIN, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "w1a1 [" in resumed.stderr and "w1a2 [" not in resumed.stderr
    assert not (tmp_path / "out.training").exists()
    assert quantize(*CHAIN, out="whole").exit_code == 0
    whole, again = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert whole.keys() == again.keys()
    assert all(whole[name].equal(again[name]) for name in whole)


def test_time_before_a_resume_counts(quantize, interrupted, tmp_path):
    file = tmp_path / "out.training" / "training.safetensors"
    meta, state = read_tensors(file)
    assert 0 < meta["seconds"] < 100
    write_tensors(file, state, {**meta, "seconds": 1000.0})
    seconds = json.loads(quantize(*CHAIN, "--resume", "--json").stdout)["seconds"]
    assert 1000 < seconds["training"] <= seconds["total"] < 1100


def test_unfinished_training_is_not_thrown_away(quantize, interrupted, tmp_path):
    result = quantize(*CHAIN)
    assert result.exit_code == 1
    assert "--resume" in result.stderr and "--overwrite" in result.stderr
    assert quantize(*CHAIN, "--overwrite").exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "out", "tiny-bert"]


@pytest.mark.parametrize(
    "changes, words",
    [
        (("--preset", "bit-ref"), ["config.attention: 'row-max' then, 'table' now"]),
        (("--seed", 1), ["seed: 0 then, 1 now"]),
        (("--lr", 0.01), ["lr: 0.004 then, 0.01 now"]),
        (("--pooled-weight", 1), ["pooled_weight: 0.0 then, 1.0 now"]),
        (("--steps", 5), ["steps: 4 then, 5 now"]),
        (("--chain", "w1a4,w1a1"), ["stages: 'w1a2,w1a1' then, 'w1a4,w1a1' now"]),
    ],
)
def test_other_settings_are_refused_and_named(quantize, interrupted, tmp_path, changes, words):
    result = quantize(*CHAIN, "--resume", *changes)
    assert result.exit_code == 1, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert all(word in last for word in (*words, "not resumed")), last
    assert (tmp_path / "out.training" / "training.safetensors").exists()


def test_other_data_is_refused(quantize, interrupted, text_file):
    text_file.write_text(text_file.read_text() + "\nAnother sentence that was not there before stands here.")
    assert "data: '" in quantize(*CHAIN, "--resume").stderr


def test_nothing_to_resume_starts(quantize, tmp_path):
    result = quantize("--resume")
    assert result.exit_code == 0
    assert "no unfinished training" in result.stderr


def test_full_disk_at_the_final_save_loses_no_step(quantize, monkeypatch, tmp_path):
    def full(tensors, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    with monkeypatch.context() as patch:
        patch.setattr("bitquant.checkpoint._write_tensors", full)
        result = quantize(steps=3)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr.splitlines()[-1]
    assert "--resume goes on" in result.stderr
    Interrupter(monkeypatch, at=1)  # any further step would be interrupted
    assert quantize("--resume", steps=3).exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "out", "tiny-bert"]


def test_full_disk_at_a_training_checkpoint(quantize, monkeypatch, tmp_path):
    from bitquant.distillation import state

    save_file, calls = state.save_file, []

    def full(tensors, file, **options):
        calls.append(file)
        if len(calls) > 1:
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save_file(tensors, file, **options)

    monkeypatch.setattr(state, "save_file", full)
    result = quantize("--checkpoint-every", 1)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr.splitlines()[-1]
    assert sorted(os.listdir(tmp_path / "out.training")) == ["run.json", "training.safetensors"]


def test_nothing_is_left_before_the_first_checkpoint(quantize, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bitquant.pipeline.distill", interrupted)
    result = quantize()
    assert result.exit_code == 130
    assert "--resume" not in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "tiny-bert"]


def test_what_is_not_ours_is_never_replaced(quantize, tmp_path):
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "thesis.txt").write_text("years of work")
    for option in ("--overwrite", "--resume"):
        result = quantize(option)
        assert result.exit_code == 1
        assert "never replaced" in result.stderr
    assert (tmp_path / "out.training" / "thesis.txt").exists()


def test_damaged_training(quantize, interrupted, tmp_path):
    file = tmp_path / "out.training" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    result = quantize(*CHAIN, "--resume")
    assert result.exit_code == 1
    assert "damaged" in result.stderr.splitlines()[-1]


def test_widths_and_chains(quantize, tmp_path):
    result = quantize("--widths", "w1a8", "--json", steps=1)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["config"]["activation_bits"] == 8
    result = quantize("--chain", "bit", "--json", "--overwrite", steps=1)
    assert json.loads(result.stdout)["config"]["activation_bits"] == 1
    for arguments, words in (
        (("--widths", "w2a3"), "'w2a3' is no width"),
        (("--chain", "w1a1,w1a8"), "goes up from w1a1 to w1a8"),
        (("--chain", "w1a8,w1"), "'w1' is no width"),
    ):
        result = quantize(*arguments)
        assert result.exit_code == 1
        assert words in result.stderr.splitlines()[-1]
    assert quantize("--widths", "w1a8", "--chain", "bit").exit_code == 2


def test_configuration_file(quantize, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"ste": "window", "modules_to_not_convert": ["pooler"]}))
    facts = json.loads(quantize("--config", file, "--skip", "encoder.layer.1", "--json", steps=0).stdout)
    assert facts["config"]["ste"] == "window"
    assert facts["config"]["modules_to_not_convert"] == ["pooler", "encoder.layer.1"]
    for content, words in (("[]", "JSON object"), ('{"bits": 1}', "unknown configuration field"), ("{", "valid JSON")):
        file.write_text(content)
        assert words in quantize("--config", file, "--overwrite").stderr.splitlines()[-1]
    assert "No such file" in quantize("--config", tmp_path / "nowhere.json", "--overwrite").stderr
    assert quantize("--config", file, "--preset", "bit-ref").exit_code == 2
