"""``export``, ``bench`` and ``profile`` on models whose inputs only data can show."""

import json

import numpy as np
import pytest
import tiny_models
import torch

import bitquant

FACTORY = "tiny_models:mlp"
QUICK = ("--time", 0)


@pytest.fixture
def rows(tmp_path):
    np.savez(tmp_path / "rows.npz", features=np.random.default_rng(0).normal(size=(40, 16)))
    return tmp_path / "rows.npz"


@pytest.fixture
def packed(tmp_path):
    model = tiny_models.mlp().eval()
    bitquant.quantize_(model, "bit-plus", {"features": torch.randn(2, 16)})
    bitquant.convert_(model)
    bitquant.save(model, tmp_path / "packed", factory=FACTORY)
    return tmp_path / "packed"


def refused(result, words, code=1):
    assert result.exit_code == code, result.output
    assert words in result.stderr and "Traceback" not in result.output
    return True


def test_profile_of_a_factory_and_of_its_checkpoint(bitquant_cli, rows, packed):
    assert refused(bitquant_cli("profile", FACTORY), "give it data (--data)")
    found = json.loads(bitquant_cli("profile", FACTORY, "--data", rows, "--json").stdout)
    macs = 16 * 32 + 32 * 32 + 32 * 8
    assert found["before"]["total"]["macs"] == macs
    assert refused(bitquant_cli("profile", packed, "--data", rows), "--allow-factory")
    result = bitquant_cli("profile", packed, "--data", rows, "--allow-factory", "--json")
    total = json.loads(result.stdout)["profile"]["total"]
    assert (total["macs"], total["quantized_macs"]) == (macs - 32 * 32, 32 * 32)


def test_profile_of_pictures_and_of_a_stated_rate(bitquant_cli, tmp_path):
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("PIL")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    assert refused(bitquant_cli("profile", tmp_path / "vit"), "holds no preprocessor_config.json")
    preprocessor = {"size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = json.loads(bitquant_cli("profile", tmp_path / "vit", "--json").stdout)
    assert found["after"]["total"]["quantized_macs"] > 0
    assert bitquant_cli("profile", "tiny_models:Frames").exit_code == 0


def test_bench(bitquant_cli, rows, packed):
    assert refused(bitquant_cli("bench", packed, "--allow-factory", *QUICK), "give it data (--data)")
    arguments = ("bench", packed, "--allow-factory", "--data", rows, "--batch", 1, "--batch", 3, *QUICK)
    found = json.loads(bitquant_cli(*arguments, "--json").stdout)
    assert [row["batch"] for row in found["times"]] == [1, 3]
    assert set(found["shares"]) == {"float", "packed"}
    assert refused(bitquant_cli(*arguments, "--tokens", 8), "--data has lengths of its own", code=2)


def test_export(bitquant_cli, rows, packed, tmp_path):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    assert refused(bitquant_cli("export", packed, tmp_path / "a.onnx", "--allow-factory"), "give it data (--data)")
    result = bitquant_cli("export", packed, tmp_path / "a.onnx", "--allow-factory", "--data", rows)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.onnx").stat().st_size > 0


def test_data_that_gives_no_example(bitquant_cli, packed, tmp_path):
    np.savez(tmp_path / "nan.npz", features=np.full((40, 16), np.nan))
    for command in ("bench", "profile"):
        result = bitquant_cli(command, packed, "--allow-factory", "--data", tmp_path / "nan.npz")
        assert refused(result, "none of the first rows in")
    assert refused(bitquant_cli("bench", packed, "--allow-factory", "--data", tmp_path / "no"), "does not exist")
