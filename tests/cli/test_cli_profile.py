"""bitquant profile: directories, checkpoints and factories; tables, JSON and pictures."""

import json

import pytest
from click.testing import CliRunner

import bitquant
from bitquant.cli import main
from bitquant.sources import load_source

FACTORY = "recipes.hubert.zoo:tiny_sparseformer"


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["profile", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_factory_before_and_after():
    shown = run(FACTORY, "--seconds", "1")
    assert "encoder.layers" in shown and "low-bit GMAC" in shown
    assert "storage -" in shown and "estimated time -" in shown


def test_json_scales_with_the_audio():
    short, long = (json.loads(run(FACTORY, "--seconds", s, "--json")) for s in ("1", "2"))
    assert set(short) == {"before", "after"}
    assert long["before"]["total"]["macs"] > 1.9 * short["before"]["total"]["macs"]
    assert long["after"]["total"]["storage_bytes"] == short["after"]["total"]["storage_bytes"]


def test_widths_and_conventions():
    data = json.loads(run(FACTORY, "--seconds", "1", "--widths", "W1A8", "--convention", "paper", "--json"))
    assert (data["after"]["total"]["weight_bits"], data["after"]["total"]["activation_bits"]) == (1, 8)
    assert data["after"]["fitted"] and not data["before"]["total"]["quantized_macs"]


def test_a_configuration_of_your_own():
    plain, wide = (json.loads(run(FACTORY, "--seconds", "1", *given, "--json"))["after"]["total"]
                   for given in ((), ("--low-rank", "4", "--preset", "bit-ref")))  # fmt: skip
    assert wide["macs"] > plain["macs"] and wide["storage_bytes"] > plain["storage_bytes"]


def test_sparse_attention_counted_by_its_mask():
    dense, ideal = (json.loads(run(FACTORY, "--seconds", "1", "--attention", a, "--json")) for a in ("dense", "ideal"))
    pairs = [sum(row["macs"] for row in found["before"]["layers"] if row["component"] == "product")
             for found in (dense, ideal)]  # fmt: skip
    assert 0.3 < pairs[1] / pairs[0] < 0.6  # blocks of 8 and summaries of 2 at 49 frames


def test_hugging_face_directory_and_checkpoint(tiny_bert, tmp_path):
    pytest.importorskip("transformers")
    shown = run(str(tiny_bert), "--tokens", "16", "--depth", "1")
    assert "encoder" in shown and "embeddings" in shown
    source = load_source(tiny_bert)
    bitquant.quantize_(source.model, "bit-plus", source.example_inputs())
    bitquant.convert_(source.model)
    bitquant.save(source.model, tmp_path / "packed")
    data = json.loads(run(str(tmp_path / "packed"), "--tokens", "16", "--json"))
    assert data["profile"]["total"]["quantized_macs"] > 0
    assert "1/1" in run(str(tmp_path / "packed"), "--tokens", "16")
    assert "--widths is for a float model" in run(str(tmp_path / "packed"), "--widths", "w1a8", code=2)
    assert "40 positions: 64 tokens are too many" in run(str(tiny_bert), "--tokens", "64", code=1)


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    run(FACTORY, "--seconds", "1", "--plot", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "is not supported" in run(FACTORY, "--seconds", "1", "--plot", str(tmp_path / "out.xyz"), code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FACTORY, "--widths", "1bit"], "'1bit' is no width"),
        ([FACTORY, "--widths", "w7a3"], "'w7a3' is no width"),
        ([FACTORY, "--convention", "metric", "--seconds", "1"], "unknown convention 'metric'"),
        (["recipes.hubert.zoo:nothing"], "has no attribute 'nothing'"),
        (["no.such.module:model"], "No module named"),
        (["/nowhere"], "does not exist"),
        (["torch.nn:Identity"], "takes input: give it data (--data)"),
    ],
)
def test_errors_are_one_sentence(arguments, message):
    shown = run(*arguments, code=1)
    assert message in shown and "Traceback" not in shown
