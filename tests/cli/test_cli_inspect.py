"""``bitquant inspect`` on a float model and on a checkpoint."""

import json

import pytest
import torch

import bitquant
from bitquant.damage import Sensitivity
from bitquant.data import read_data
from bitquant.sources import load_source

pytest.importorskip("transformers")


def test_float_model(bitquant_cli, tiny_bert):
    result = bitquant_cli("inspect", tiny_bert)
    assert result.exit_code == 0, result.output
    assert "encoder.layer.1.attention.self.query" in result.stdout
    facts = json.loads(bitquant_cli("inspect", tiny_bert, "--json").stdout)
    assert {"path", "kind", "macs", "reason"} <= set(facts["rows"][0])


def test_a_configuration_of_your_own(bitquant_cli, tiny_bert, tmp_path):
    (tmp_path / "config.json").write_text('{"embedding_bits": 32}')
    given = ("--config", tmp_path / "config.json", "--skip", "encoder.layer.0.output.dense", "--low-rank", "4")
    facts = json.loads(bitquant_cli("inspect", tiny_bert, *given, "--json").stdout)
    rows = {row["path"]: row for row in facts["rows"]}
    for kept in ("encoder.layer.0.output.dense", "embeddings.word_embeddings"):
        assert rows[kept]["reason"] == "kept by the configuration"
    assert "float path" in rows["encoder.layer.1.output.dense.float_path"]["reason"]
    source = load_source(tiny_bert)
    skipped = ("encoder.layer.0.output.dense",)
    config = bitquant.QuantConfig(embedding_bits=32, low_rank=4, modules_to_not_convert=skipped)
    bitquant.quantize_(source.model, config, source.example_inputs())
    found = bitquant.report(source.model).to_dict()
    assert {row["path"]: row["reason"] for row in found["rows"]} == {path: rows[path]["reason"] for path in rows}
    assert found["total_macs"] == facts["total_macs"]
    result = bitquant_cli("inspect", tiny_bert, "--skip", "nothing")
    assert result.exit_code == 1 and "nothing" in result.stderr


def test_rewritten_code(bitquant_cli, tiny_bert):
    result = bitquant_cli("inspect", tiny_bert, "--code", "encoder.layer.0.attention.self")
    assert "self.bit_attention_0(" in result.stdout and "def forward(" in result.stdout
    result = bitquant_cli("inspect", tiny_bert, "--code", "encoder.layer.7")
    assert result.exit_code == 1
    assert "is not rewritten; rewritten modules: encoder.layer.0.attention.self" in result.stderr


def test_checkpoint(bitquant_cli, tiny_bert, tmp_path):
    source = load_source(tiny_bert)
    config = bitquant.QuantConfig.preset("bit-plus", modules_to_not_convert=["pooler"])
    bitquant.quantize_(source.model, config, source.example_inputs())
    bitquant.convert_(source.model)
    bitquant.save(source.model, tmp_path / "out")
    facts = json.loads(bitquant_cli("inspect", tmp_path / "out", "--json").stdout)
    reasons = {row["path"]: row["reason"] for row in facts["rows"]}
    assert reasons["pooler.dense"] == "kept by the configuration"
    assert reasons["encoder.layer.0.output.dense"] is None
    result = bitquant_cli("inspect", tmp_path / "out", "--skip", "pooler")
    assert result.exit_code == 2
    assert "--skip is for a float model: this checkpoint is quantized already" in result.stderr


@pytest.mark.parametrize("path, words", [("nowhere", "does not exist"), (".", "holds no config.json")])
def test_no_model(bitquant_cli, tmp_path, path, words):
    result = bitquant_cli("inspect", tmp_path / path)
    assert result.exit_code == 1
    assert words in result.stderr


def test_checkpoint_that_lies(bitquant_cli, tiny_bert):
    config = json.loads((tiny_bert / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitquant", "format_version": 2}
    (tiny_bert / "config.json").write_text(json.dumps(config))
    result = bitquant_cli("inspect", tiny_bert)
    assert result.exit_code == 1
    assert "no field 'sha256'" in result.stderr


def test_sensitivity(bitquant_cli, tiny_bert, text_file, tmp_path):
    mine = {"activation_bits": 8, "rules": {"encoder.layer.0.output.dense": None}}
    (tmp_path / "mine").write_text(json.dumps(mine))
    arguments = ["--sensitivity", text_file, "--budget", "0.3", "--save", tmp_path / "c", "--config", tmp_path / "mine"]
    result = bitquant_cli("inspect", tiny_bert, *arguments)
    assert result.exit_code == 0, result.output
    assert "damage" in result.stdout and "encoder.layer.1.output.dense" in result.stdout
    saved = json.loads((tmp_path / "c").read_text())
    assert saved["activation_bits"] == 8 and saved["rules"].items() > mine["rules"].items()  # what was given stays
    config = bitquant.QuantConfig.from_dict(saved)
    source = load_source(tiny_bert)
    bitquant.quantize_(source.model, config, source.example_inputs())


def test_sensitivity_looks_at_nothing_held_out(bitquant_cli, tiny_bert, text_file, monkeypatch):
    seen = []

    def record(model, config, batches, *, progress):
        seen.extend(batches)
        return Sensitivity([], 0)

    monkeypatch.setattr("bitquant.damage.sensitivity", record)
    assert bitquant_cli("inspect", tiny_bert, "--sensitivity", text_file).exit_code == 0
    data = read_data(text_file, load_source(tiny_bert))
    training = data.in_order(data.split()[0][:64])
    expected = list(data.batches(training, batch_size=data.batch_size))
    assert len(seen) == len(expected)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize(
    "options, words",
    [(["--budget", "0.1"], "go with --sensitivity"), (["--sensitivity", "x", "--save", "y"], "give the --budget")],
)
def test_sensitivity_half_said(bitquant_cli, tiny_bert, tmp_path, options, words):
    result = bitquant_cli("inspect", tiny_bert, *options)
    assert result.exit_code == 2 and words in result.stderr
