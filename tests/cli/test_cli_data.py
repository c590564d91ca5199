"""``bitquant quantize`` on a model of the user's own and on data that is not text."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import save_file

import bitquant


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The models, for the fresh process too."""
    folders = (Path(tiny_models.__file__).parent, Path(bitquant.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))


def weights(factory, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "weights.safetensors"
    save_file(factory().state_dict(), file)
    return file


@pytest.fixture
def rows(tmp_path):
    np.savez(tmp_path / "rows.npz", features=np.random.default_rng(0).normal(size=(300, 16)))
    return tmp_path / "rows.npz"


@pytest.fixture
def recordings(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    rng, folder = np.random.default_rng(0), tmp_path / "audio"
    folder.mkdir()
    for i in range(100):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, rng.integers(2000, 8000)), (8000, 11025)[i % 2])
    soundfile.write(folder / "silent.wav", np.zeros(8000), 8000)
    return folder


def test_rows_of_an_own_model(bitquant_cli, rows, tmp_path):
    file = weights(tiny_models.mlp, tmp_path)
    arguments = ("tiny_models:mlp", "--weights", file, "--data", rows, "--out", tmp_path / "out", "--steps", 5)
    result = bitquant_cli("quantize", *arguments, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["identical_after_reload"] is True
    assert facts["data"]["unit"] == "rows"
    assert [row["batch"] for row in facts["milliseconds"]] == [1, 32]
    with pytest.raises(ValueError, match="allow_factory"):
        bitquant.load(tmp_path / "out")
    bitquant.load(tmp_path / "out", model=tiny_models.mlp())
    assert "--allow-factory" in bitquant_cli("inspect", tmp_path / "out").stderr
    assert "layers.2" in bitquant_cli("inspect", tmp_path / "out", "--allow-factory").stdout
    assert bitquant_cli("quantize", *arguments, "--overwrite").exit_code == 0


def test_recordings_and_logits(bitquant_cli, recordings, tmp_path):
    file = weights(tiny_models.Frames, tmp_path)
    arguments = ("--weights", file, "--data", recordings, "--out", tmp_path / "out", "--steps", 20, "--batch-size", 8)
    result = bitquant_cli("quantize", "tiny_models:Frames", *arguments, "--max-seconds", 2)
    assert result.exit_code == 0, result.output
    for words in ("batch 1, 1 s, ms", "batch 8, 2 s, ms", "same class chosen", "held-out recordings", "bit for bit"):
        assert words in result.stdout, words
    assert "skipped 1 of" in result.stderr and "silent.wav: it is silent" in result.stderr
    assert "tokens/s" not in result.stderr


def test_pictures(bitquant_cli, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for i in range(60):
        image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    arguments = ("quantize", tmp_path / "vit", "--data", folder, "--out", tmp_path / "out", "--steps", 2)
    assert "preprocessor_config.json" in bitquant_cli(*arguments).stderr.splitlines()[-1]
    preprocessor = tmp_path / "vit" / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    result = bitquant_cli(*arguments)
    assert result.exit_code == 0, result.output
    assert "bit for bit" in result.stdout
    assert (tmp_path / "out" / "preprocessor_config.json").read_bytes() == preprocessor.read_bytes()


def test_nothing_usable(bitquant_cli, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "audio").mkdir()
    for i in range(200):
        soundfile.write(tmp_path / "audio" / f"{i}.wav", np.zeros(8000), 8000)
    arguments = ("tiny_models:Frames", "--weights", weights(tiny_models.Frames, tmp_path), "--data", tmp_path / "audio")
    result = bitquant_cli("quantize", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert "cannot be used" in last and "silent" in last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("tiny_models:mlp",), "--weights FILE.safetensors"),
        (("tiny_models:mlp", "--weights", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        (("tiny_models:mlp", "--weights", "weights.pt"), "weights.pt is a pickle"),
        (("no_such:model", "--weights", "{file}"), "no_such:model cannot be called: ModuleNotFoundError"),
        (("tiny_models:Frames", "--weights", "{file}"), "lacks"),
        (("tiny_models:mlp", "--weights", "{file}", "--data", "{text}"), "holds 1 text file, but"),
        (("tiny_models:mlp", "--weights", "{file}", "--data", "{nan}"), "NaN or infinite"),
    ],
)
def test_mistakes(bitquant_cli, rows, text_file, tmp_path, arguments, words):
    np.savez(tmp_path / "nan.npz", features=np.where(np.arange(16) == 3, np.nan, np.load(rows)["features"]))
    places = {"file": weights(tiny_models.mlp, tmp_path), "text": text_file, "nan": tmp_path / "nan.npz"}
    given = [argument.format(**places) for argument in arguments]
    data = () if "--data" in given else ("--data", rows)
    result = bitquant_cli("quantize", *given, *data, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert words in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_inspect_an_own_model(bitquant_cli, rows, tmp_path):
    file = weights(tiny_models.mlp, tmp_path)
    result = bitquant_cli("inspect", "tiny_models:mlp", "--weights", file, "--data", rows)
    assert result.exit_code == 0, result.output
    assert "layers.2" in result.stdout
