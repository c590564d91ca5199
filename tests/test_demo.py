"""The demo's text and model."""

import pytest

from bitquant import demo

TOPIC = """The "with" statement
********************

The *with* statement wraps the execution
of a block. See section 3.

   with_stmt ::= "with" expression ":" suite

object.__new__(cls[, ...])

   Called to create a new instance of
   class *cls*.

1. A numbered entry is a sentence too.

   for x in y:
       print(x + 1) == None

term
   The definition of a term stands below it.
"""
WORDNET = """  1 This software and database is being provided to you under a licence
15299783 28 n 01 window 0 000 | the time period that is considered best; "they had a window of less than an hour"; two
"""


def test_prose_of_a_reference_page():
    assert demo.prose(TOPIC) == [
        "The with statement wraps the execution of a block.",
        "Called to create a new instance of class cls.",
        "A numbered entry is a sentence too.",
        "The definition of a term stands below it.",
    ]


def test_glosses():
    assert demo.glosses(WORDNET) == [
        "the time period that is considered best",
        "they had a window of less than an hour",
    ]


def test_there_is_enough_text_everywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "WORDNET", tmp_path)
    python = demo.demo_sentences()
    assert len(set(python)) > 5000
    (tmp_path / "data.noun").write_text(WORDNET)
    monkeypatch.setattr(demo, "_docstrings", lambda folder: [])
    assert demo.demo_sentences()[-2:] == demo.glosses(WORDNET)


def test_model_is_found_without_running_its_package():
    import sys

    try:
        directory = demo.demo_model()
    except ModuleNotFoundError:
        pytest.skip("the demo's model package is not installed")
    assert (directory / "config.json").is_file()
    assert demo.PACKAGE not in sys.modules


def test_missing_or_other_model_package(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bitquant-torch\[demo\]'"):
        demo.demo_model()
    (tmp_path / "fake_minilm" / "model").mkdir(parents=True)
    (tmp_path / "fake_minilm" / "__init__.py").write_text("raise SystemError('was run')")
    (tmp_path / "fake_minilm" / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(demo, "PACKAGE", "fake_minilm")
    with pytest.raises(ValueError, match="is not the published file"):
        demo.demo_model()
