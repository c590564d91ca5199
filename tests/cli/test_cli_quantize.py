"""``bitquant quantize`` from end to end on a tiny model, and each way in which its user can be wrong."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from bitquant.checkpoint import load

pytest.importorskip("transformers")


@pytest.fixture
def quantize(bitquant_cli, tiny_bert, text_file, tmp_path):
    def run(*arguments, model=tiny_bert, data=text_file, out=tmp_path / "out", steps=2):
        return bitquant_cli("quantize", model, "--data", data, "--out", out, "--steps", steps, *arguments)

    return run


@pytest.fixture
def no_training(monkeypatch):
    """A mistake must be found before minutes of training."""

    def distill(*arguments, **options):
        raise AssertionError("training began")

    monkeypatch.setattr("bitquant.pipeline.distill", distill)


@pytest.fixture
def no_measuring(monkeypatch):
    """Leaves out the fresh process where a test looks at the files only."""
    same = {"cosine": 1.0, "top1": 1.0, "top10": 1.0}
    answer = {"fidelity": same, "identical": True, "milliseconds": []}
    monkeypatch.setattr("bitquant.pipeline.measure_fresh", lambda *arguments, **options: answer)


def refused(result, *words):
    """One sentence on stderr, exit code 1, no traceback."""
    assert result.exit_code == 1, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert all(word in last for word in words), last
    assert "Traceback" not in result.output
    return True


def test_end_to_end(quantize, tmp_path, tiny_bert):
    result = quantize("--max-length", 16)
    assert result.exit_code == 0, result.output
    for words in (
        "model.safetensors, MB",
        "batch 1, 16 tokens, ms",
        "batch 32, 40 tokens, ms",
        "MACs binarized",
        "cosine to the teacher",
        "same 10 nearest",
        "stayed in float",
        "position or type embedding",
        "bit for bit equal to the trained student",
    ):
        assert words in result.stdout, words
    assert "2/2" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "out", "tiny-bert"]
    assert sorted(os.listdir(tmp_path / "out")) == ["bitquant.safetensors", "config.json", "tokenizer.json"]
    load(tmp_path / "out")


def test_json_holds_the_same_numbers(quantize):
    result = quantize("--json", "--preset", "bit-ref", "--skip", "encoder.layer.1.attention.self.query")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["identical_after_reload"] is True
    assert facts["megabytes"]["weights"]["after"] < facts["megabytes"]["weights"]["before"] / 4
    assert set(facts["fidelity"]) == {"undistilled", "distilled"}
    assert facts["config"]["name"] == "bit-ref"
    assert [row["batch"] for row in facts["milliseconds"]] == [1, 1, 32, 32]
    assert 0.5 < facts["coverage"]["share_binarized"] < 1
    reasons = {row["path"]: row["reason"] for row in facts["coverage"]["rows"]}
    assert reasons["encoder.layer.1.attention.self.query"] == "kept by the configuration"


def test_low_rank(quantize, no_measuring, tmp_path):
    result = quantize("--low-rank", "2")
    assert result.exit_code == 0, result.output
    assert "13 paths of low rank" in result.stdout  # two layers of six, and the pooler
    model = load(tmp_path / "out")
    assert model._bitquant.config.low_rank == 2
    assert model.get_submodule("encoder.layer.0.output.dense").float_path.rank == 2


def test_embedding_bits(quantize, no_measuring, tmp_path):
    result = quantize("--embedding-bits", "4")
    assert result.exit_code == 0, result.output
    table = load(tmp_path / "out").get_submodule("embeddings.word_embeddings")
    assert table.bits == 4 and len(table.weight_packed) == 4 * table.rows


def test_same_seed_same_file(quantize, no_measuring, tmp_path):
    for out in ("a", "b"):
        assert quantize(out=tmp_path / out, steps=3).exit_code == 0
    first, second = ((tmp_path / out / "bitquant.safetensors").read_bytes() for out in ("a", "b"))
    assert first == second


def test_missing_model(quantize, tmp_path):
    assert refused(quantize(model=tmp_path / "nowhere"), "nowhere does not exist")


def test_not_a_model(quantize, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(quantize(model=tmp_path / "empty"), "holds no config.json")


def test_damaged_weights(quantize, tiny_bert):
    file = tiny_bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert refused(quantize(), "truncated or damaged")


def test_lying_metadata(quantize, tiny_bert):
    config = json.loads((tiny_bert / "config.json").read_text())
    (tiny_bert / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    assert refused(quantize(), "config.json does not fit the weights file")


def test_pickle(quantize, tiny_bert):
    (tiny_bert / "model.safetensors").unlink()
    (tiny_bert / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    assert refused(quantize(), "pytorch_model.bin is a pickle")


def test_empty_and_missing_data(quantize, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    assert refused(quantize(data=tmp_path / "empty.txt"), "holds no sentence")
    (tmp_path / "little.txt").write_text("One sentence.\nAnother sentence.\n")
    assert refused(quantize(data=tmp_path / "little.txt"), "only 2 different sentences")
    assert refused(quantize(data=tmp_path / "nowhere"), "nowhere does not exist")


def test_unknown_preset(quantize, no_training):
    assert refused(quantize("--preset", "bit-minus"), "bit-minus", "bit-plus", "bit-ref")


def test_rule_that_matches_nothing(quantize, no_training):
    assert refused(quantize("--skip", "encoder.layr.1"), "encoder.layr.1", "encoder.layer.1")
    assert refused(quantize("--skip", "re:("), "not a valid regular expression")


def test_unwritable_output(quantize, no_training, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert refused(quantize(out=tmp_path / "file" / "out"), "cannot be written")


def test_existing_output(quantize, no_measuring, tmp_path):
    assert quantize(steps=0).exit_code == 0
    before = (tmp_path / "out" / "config.json").read_bytes()
    result = quantize(steps=0)
    assert refused(result, "exists", "--overwrite")
    assert "calibrating" not in result.stderr
    assert (tmp_path / "out" / "config.json").read_bytes() == before
    assert quantize("--overwrite", "--preset", "bit-ref", steps=0).exit_code == 0
    assert (tmp_path / "out" / "config.json").read_bytes() != before
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("years of work")
    assert refused(quantize("--overwrite", out=tmp_path / "own"), "never replaced")


def test_full_disk(quantize, tmp_path, monkeypatch):
    def full(tensors, file):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr("bitquant.checkpoint._write_tensors", full)
    assert refused(quantize(steps=0), "No space left on device")
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "tiny-bert"]


def test_failures_of_the_run_itself_are_sentences_too(quantize, monkeypatch, tmp_path):
    from bitquant.ops import BackendUnavailable

    for error in (FloatingPointError("the loss is nan at step 3"), BackendUnavailable("backend 'native' cannot run")):

        def fails(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr("bitquant.pipeline.distill", fails)
        assert refused(quantize(), str(error))
    monkeypatch.undo()
    monkeypatch.setattr("bitquant.fresh.sys.executable", "false")
    assert refused(quantize(steps=0), "is saved, but a fresh process could not measure it")
    load(tmp_path / "out")


def test_usage_errors_exit_with_2(bitquant_cli, quantize):
    assert bitquant_cli("quantize").exit_code == 2
    assert quantize("--steps", "-1").exit_code == 2
    assert quantize("--no-such-option").exit_code == 2


def test_interruption_in_training(quantize, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("bitquant.pipeline.distill", interrupted)
    result = quantize()
    assert result.exit_code == 130
    assert "nothing is left half written" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "tiny-bert"]


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_real_process_and_real_ctrl_c(tiny_bert, text_file, tmp_path):
    command = [sys.executable, "-m", "bitquant", "quantize", str(tiny_bert), "--data", str(text_file)]
    command += ["--out", str(tmp_path / "out"), "--steps", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    while line := process.stderr.readline():
        lines.append(line)
        if "/1000000" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert "--resume" in stderr
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "out.training", "tiny-bert"]
    assert "training.safetensors" in os.listdir(tmp_path / "out.training")
