"""The runner of the accuracy benchmark: float, student and packed measured in one run; MiniLM's measures by hand."""

import json

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("transformers")

from benchmarks.accuracy import minilm, run
from bitquant.data import Sentences
from bitquant.sources import open_source


def test_float_student_and_packed_in_one_run(tiny_bert, text_file, tmp_path, monkeypatch):
    seen = {}

    def task(work, speech, seconds, max_length):
        source = open_source(str(tiny_bert))
        batch = source.example_inputs()

        def score(models):
            with torch.no_grad():
                seen.update({name: model(**batch).last_hidden_state for name, model in models.items()})
            return {"norm": {name: seen[name].norm().item() for name in models}}

        return run.Task(source, Sentences.read(text_file, source), score)

    monkeypatch.setitem(run.TASKS, "minilm", task)
    arguments = ["minilm", "--work", tmp_path, "--steps", 2, "--widths", "w1a8", "--log", tmp_path / "log"]
    result = CliRunner().invoke(run.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0 and "norm" in result.stdout
    assert torch.equal(seen["student"], seen["packed"]) and not torch.equal(seen["float"], seen["student"])
    line = json.loads((tmp_path / "log").read_text())
    assert line["config"]["activation_bits"] == 8 and set(line["measured"]["norm"]) == {"float", "student", "packed"}


def test_speech_needs_recordings(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.accuracy.hama.write", lambda directory: None)
    result = CliRunner().invoke(run.main, ["hama", "--work", str(tmp_path)])
    assert result.exit_code == 2 and "hama needs --speech" in result.stderr


def test_measures_by_hand():
    rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    assert minilm.retrieval(rows, rows) == 1.0
    assert minilm.retrieval(rows, rows[[1, 0, 2]]) == pytest.approx(1 / 3)
    angles = torch.tensor([0.1 * i for i in range(8)] + [1.5 + 0.1 * i for i in range(8)])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    assert minilm.nearest_topic(points, ("a",) * 8 + ("b",) * 8) == 1.0
    assert minilm.nearest_topic(points, ("a",) * 7 + ("b",) * 9) < 1.0


def test_reads_nouns_and_topics(tmp_path, monkeypatch):
    (tmp_path / "data.noun").write_text(
        "  1 the licence\n"
        '00001 03 n 02 hot_dog 0 frank 0 000 | a sausage in a roll; "eat it"  \n'
        "00002 03 n 01 roll 0 000 | a roll that names itself\n"
    )
    (tmp_path / "art").write_text("one two three four five six seven eight\n%\ntoo short\n")
    (tmp_path / "art.dat").write_bytes(b"\0")
    monkeypatch.setattr(minilm, "WORDNET", tmp_path)
    assert minilm.noun_glosses() == [("hot dog", "a sausage in a roll")]
    monkeypatch.setattr(minilm, "FORTUNES", tmp_path)
    (tmp_path / "data.noun").unlink()
    assert minilm.topic_texts() == [("art", "one two three four five six seven eight")]
    monkeypatch.setattr(minilm, "WORDNET", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="install Debian's package wordnet-base"):
        minilm.score(None, {})
