"""The speed benchmarks on tiny models: what they print adds up, and what must not be timed is not."""

import json

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import encoders, rivals, timing, transformer, waveform
from bitquant.ops import library, native

TINY = {"2x32": (2, 32, 2, 48)}


@pytest.fixture
def tiny_encoders(monkeypatch):
    for module in (encoders, transformer):
        monkeypatch.setattr(module, "SHAPES", TINY)


@pytest.fixture
def tiny_waveform(monkeypatch):
    presets = {waveform.PLAIN: "tiny_transformer", waveform.DN: "tiny_sparseformer"}
    monkeypatch.setattr(waveform, "PRESETS", presets)
    monkeypatch.setattr(waveform, "SAMPLES", 4000)


def test_encoders(tiny_encoders, monkeypatch):
    row = encoders.measure("2x32", 20, 0.0, memory=False)
    assert {"1-bit", "fp32", "bf16", "int8"} <= set(row["milliseconds"])
    for name, ratio in row["times_faster_than"].items():
        assert ratio == row["milliseconds"][name] / row["milliseconds"]["1-bit"]
    assert "1-bit attention" in row["shares"]
    encoders.show([row])


def test_missing_onnx_runtime_is_said(tiny_encoders, monkeypatch):
    monkeypatch.setattr(rivals, "ONNX_RUNTIME", False)
    monkeypatch.setattr(encoders, "ONNX_RUNTIME", False)
    monkeypatch.setattr(encoders, "measure", lambda *_: {"encoder": "a", "frames": 1, "milliseconds": {"1-bit": 1.0},
                                                         "times_faster_than": {}, "shares": {"x": 1.0}})  # fmt: skip
    shown = CliRunner().invoke(encoders.main, [])
    assert shown.exit_code == 0 and "ONNX Runtime is not installed" in shown.output
    assert not rivals.in_onnx_runtime(nn.Identity(), torch.zeros(1))


@torch.inference_mode()
def test_rivals_compute_what_the_model_does(tiny_encoders):
    torch.manual_seed(0)
    model, x = transformer.encoder("2x32"), torch.randn(1, 40, 32)
    expected = model(x)
    for form in (rivals.in_int8(model), rivals.InBfloat16(model)):
        assert torch.cosine_similarity(form(x), expected, dim=-1).min() > 0.99


@pytest.mark.skipif(library.unavailable_reason() is not None, reason="no kernels")
def test_wrong_kernels_are_not_timed(tiny_encoders, monkeypatch):
    own = native.binary_attention_rowmax
    monkeypatch.setattr(native, "binary_attention_rowmax", lambda *args: own(*args) + 1)
    with pytest.raises(click.ClickException, match="differs from its definition"):
        encoders.measure("2x32", 20, 0.0, memory=False)


def test_waveform_factors_multiply(tiny_waveform):
    result = waveform.measure(0.0)
    for found in result["factors"].values():
        product = found["architecture"] * found["binarization"] * found["extractor work"]
        assert product == pytest.approx(found["all"])
    assert result["changes"]["BQ-DN exact"]["cosine"] > 0.9
    assert 0 <= result["changes"]["BQ-DN exact"]["flipped_first"] <= 0.01
    json.dumps(result)
    waveform.show(result)


def test_settled_turns_call_twice():
    calls = []
    timing.median_times({"a": lambda: calls.append(1)}, 0, rounds=1, settle=True)
    assert len(calls) == 6  # two rounds that do not count, and one
