"""``bitquant demo``: the real model where it is installed, and the sentence where it is not."""

import json

import pytest

from bitquant import demo

pytest.importorskip("transformers")


def test_without_its_model_the_extra_is_named(bitquant_cli, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    result = bitquant_cli("demo", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install 'bitquant-torch[demo]'" in result.stderr


def test_real_model_without_training(bitquant_cli, monkeypatch, tmp_path):
    try:
        demo.demo_model()
    except ModuleNotFoundError:
        pytest.skip("the demo's model package is not installed")
    monkeypatch.setattr(demo, "_docstrings", lambda folder: [])
    sentences = [s for s in demo.demo_sentences() if len(s) < 60][:300]
    monkeypatch.setattr(demo, "demo_sentences", lambda: sentences)
    result = bitquant_cli("demo", "--out", tmp_path / "out", "--steps", 0, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["identical_after_reload"] is True
    assert facts["megabytes"]["weights"]["before"] == pytest.approx(90.87, abs=0.01)
    assert facts["megabytes"]["weights"]["after"] <= 4.2
    assert facts["megabytes"]["directory"]["after"] <= 4.8
