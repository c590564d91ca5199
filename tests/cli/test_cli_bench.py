"""bitquant bench: packed checkpoints of both kinds beside their float models."""

import json

import pytest
import torch

import bitquant
from bitquant.runtime.shares import REST, shares
from bitquant.sources import load_source
from recipes.hubert.model import Hubert

FACTORY = "recipes.hubert.zoo:tiny_sparseformer"
QUICK = ("--time", 0)


@pytest.fixture
def packed_bert(tiny_bert, tmp_path):
    model = load_source(tiny_bert).model
    bitquant.quantize_(model, "bit-plus", {"input_ids": torch.ones(1, 8, dtype=torch.long)})
    bitquant.convert_(model)
    bitquant.save(model, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def packed_hubert(tmp_path):
    torch.manual_seed(0)
    model = Hubert.from_preset("tiny_sparseformer").eval()
    bitquant.quantize_(model, "bit-plus", torch.randn(1, 4000))
    bitquant.convert_(model)
    bitquant.save(model, tmp_path / "packed", factory=FACTORY)
    return tmp_path / "packed"


def test_transformers_checkpoint_finds_its_float_model(packed_bert, bitquant_cli):
    result = bitquant_cli("bench", packed_bert, "--tokens", 8, "--tokens", 16, "--batch", 1, "--batch", 2, *QUICK)
    assert result.exit_code == 0, result.output
    for text in ("equal to the definition, bit for bit", "float ms", "packed ms", "times faster", "1-bit linear", "%"):
        assert text in result.stdout
    data = json.loads(bitquant_cli("bench", packed_bert, "--tokens", 8, "--json", *QUICK).stdout)
    (row,) = data["times"]
    assert (row["batch"], row["tokens"]) == (1, 8)
    assert min(row["milliseconds"][name] for name in ("float", "packed")) > 0
    assert "1-bit attention" in data["shares"]["packed"] and "Linear" in data["shares"]["float"]


def test_factory_needs_to_be_allowed(packed_hubert, bitquant_cli):
    refused = bitquant_cli("bench", packed_hubert, *QUICK)
    assert refused.exit_code == 1 and "--allow-factory" in refused.stderr
    arguments = ("bench", packed_hubert, "--allow-factory", "--seconds", 0.5, "--threads", 1, "--json", *QUICK)
    threads = torch.get_num_threads()
    try:
        exact, none = (json.loads(bitquant_cli(*arguments, "--mode", mode).stdout) for mode in ("exact", "none"))
    finally:
        torch.set_num_threads(threads)
    assert exact["threads"] == 1
    assert [row["path"] for row in exact["optimized"]] == ["front_end", "positional.conv"] and not none["optimized"]
    assert {"waveform extractor", "grouped convolution"} <= set(exact["shares"]["packed"])


def test_a_student_is_not_timed(tiny_bert, tmp_path, bitquant_cli):
    model = load_source(tiny_bert).model
    bitquant.quantize_(model, "bit-plus", {"input_ids": torch.ones(1, 8, dtype=torch.long)})
    bitquant.save(model, tmp_path / "student")
    result = bitquant_cli("bench", tmp_path / "student", *QUICK)
    assert result.exit_code == 1 and "was not packed" in result.stderr


def test_errors_are_one_sentence(packed_bert, tiny_bert, bitquant_cli):
    for arguments, message in (
        ((packed_bert, "--tokens", 64), "40 positions: 64 tokens are too many"),
        (("/nowhere",), "does not exist"),
        ((tiny_bert,), "is not a bitquant checkpoint"),
    ):
        result = bitquant_cli("bench", *arguments, *QUICK)
        assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output


def test_shares_add_up_and_leave_no_hook():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.GELU()))
    found = shares(model, torch.randn(4, 8))
    assert set(found) == {"Linear", "LayerNorm", "GELU", REST}
    assert all(ms >= 0 for ms in found.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
