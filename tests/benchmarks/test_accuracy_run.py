"""The runner of the accuracy benchmark: float, student and packed measured in one run; MiniLM's measures by hand."""

import json

import pytest
import speech_data
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

pytest.importorskip("transformers")

from benchmarks.accuracy import hama, minilm, run, table
from benchmarks.accuracy.joined import JoinedRecordings
from benchmarks.accuracy.lengths import joined
from benchmarks.accuracy.teacher import RememberingTeacher
from bitquant.data import Sentences
from bitquant.distillation.hidden import hidden_states
from bitquant.sources import open_source


def test_float_student_and_packed_in_one_run(tiny_bert, text_file, tmp_path, monkeypatch):
    seen = {}

    def task(setup):
        source = open_source(str(tiny_bert))
        batch = source.example_inputs()

        def score(models, part):
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
    assert line["settings"]["config"]["activation_bits"] == 8 and len(line["losses"]) == 2
    assert "stage_teacher" not in line["settings"]  # nobody teaches a stage that is not there
    assert set(line["measured"]["norm"]) == {"float", "student", "packed"} and set(line["dev"]["norm"]) == {"student"}
    monkeypatch.setitem(run.TASKS, "minilm", None)  # what is in the log is not run again
    again = CliRunner().invoke(run.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert again.stdout == result.stdout and len((tmp_path / "log").read_text().splitlines()) == 1


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


def test_parts_share_no_text():
    pairs = [(f"noun {i}", f"gloss {i // 2}") for i in range(100)]
    parts = minilm.parts(pairs, {"test": 20, "dev": 10})
    assert [len(parts[name]) for name in ("test", "dev")] == [20, 10]
    glosses = {name: {gloss for _, gloss in chosen} for name, chosen in parts.items()}
    assert glosses["test"].isdisjoint(glosses["dev"] | glosses["train"]) and glosses["dev"].isdisjoint(glosses["train"])
    assert parts == minilm.parts(pairs, {"test": 20, "dev": 10})


def finished(kind, lr, dev, packed, seed=0):
    return {
        "settings": {"task": kind, "lr": lr, "seed": seed},
        "dev": {"measure": {"student": dev}},
        "measured": {"measure": {"float": 0.4, "packed": packed}},
        "minutes": 2.0,
        "megabytes": {"before": 9.0, "after": 1.0},
        "milliseconds": [{"batch": batch, "before": 8.0, "after": batch + seed} for batch in (1, 2)],
    }


def test_table_takes_the_best_rate_of_the_dev_part_and_spreads_over_seeds():
    runs = [finished("minilm", 0.002, 0.1, 0.3), finished("minilm", 0.004, 0.2, 0.1)]
    assert table.best(runs)["settings"]["lr"] == 0.004
    runs = [finished("hama", 0.002, 0.1, 0.3), finished("hama", 0.004, 0.2, 0.1)]
    assert table.best(runs)["settings"]["lr"] == 0.002
    seeds = [finished("hama", 0.002, 0.1, packed, seed) for seed, packed in enumerate((0.2, 0.3, 0.4))]
    assert table.row(seeds, seeds[1:]) == ["0.002", "2", "30.0 ± 10.0 %", "1.00", "8.0, 2.0"]
    assert table.row(seeds[:1], seeds) == ["0.002", "2", "20.0 %", "1.00", "8.0, 1.0"]


def test_table_runs_every_row_at_all_rates(tmp_path, monkeypatch):
    ran = []

    def fake(kind, config, work, *, log, lr, seed, overwrite, **options):
        ran.append((config.name, config.activation_bits, config.low_rank, lr, seed))
        return finished(kind, lr, lr, 0.1, seed)

    monkeypatch.setattr(table, "run", fake)
    arguments = ["hama", "--work", tmp_path, "--log", tmp_path / "log", "--rates", "0.002,0.004", "--low-rank", "4"]
    result = CliRunner().invoke(table.main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert [line.split("|")[2].strip() for line in result.stdout.splitlines()[2:]] == [
        "", "W1A1", "W1A1", "W1A2", "W1A4", "W1A8", "W1A1, low rank 4"
    ]  # fmt: skip
    assert [run for run in ran if run[2]] == [("bit-plus", 1, 4, *which) for which in
                                              ((0.002, 0), (0.004, 0), (0.002, 1), (0.002, 2))]  # fmt: skip
    assert len(ran) == 6 * 2 + 3 * 2


def test_recordings_are_joined_to_utterances_of_a_mean_length():
    assert joined([1.0] * 6, 2) == [[0, 1], [2, 3], [4, 5]]
    assert joined([5.0, 0.4, 0.4], 2) == [[0], [1, 2]]
    assert joined([], 2) == []


def test_a_remembering_teacher_says_what_the_model_says():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    model = torch.nn.Sequential(*layers).eval()

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return {"out": self.layers(x)}

    named, x = Named(), torch.randn(3, 5, 4)
    teacher = RememberingTeacher(named)
    with hidden_states(teacher, ["layers.0"]) as states:
        for batch in (x, x[[2, 0]]):
            out = teacher(x=batch)["out"]
            assert torch.equal(out, torch.cat([model(row[None]) for row in batch]))
            assert torch.equal(states["layers.0"], torch.cat([layers[0](row[None]) for row in batch]))
    assert named.calls == 3 and not out.requires_grad
    with hidden_states(teacher, ["layers.1"]) as states:  # other layers are asked for
        teacher(x=x)
        assert torch.equal(states["layers.1"], torch.cat([model(row[None]) for row in x]))


def test_joined_recordings_fill_the_window(tmp_path):
    save_file(hama.encoder().state_dict(), tmp_path / "model.safetensors")
    source = open_source("benchmarks.accuracy.hama:encoder", tmp_path / "model.safetensors")
    folder = speech_data.recordings(tmp_path, [1.0, 0.7, 1.3, 0.5])
    data = JoinedRecordings.read(folder, source, max_seconds=4.0)
    data.usable(data.samples)
    train, held_out = data.samples[:3], data.samples[3:]
    batches = data.batches(train, batch_size=2, seed=0)
    data.batches(held_out, batch_size=2)
    assert data.others == train  # what is held out is in no window
    (batch,) = next(iter(batches)).values()
    assert batch.shape == (2, 64000) and (batch[:, -1600:].abs().amax(1) > 0).any()
    again = next(iter(data.batches(train, batch_size=2, seed=0)))["waveform"]
    assert torch.equal(batch, again)
    data.fill_with([speech_data.recordings(tmp_path / "more", [0.05, 0.6, 0.6])])
    assert [len(names) for names in data.more] == [2]  # what is too short is left out
    with_more = next(iter(data.batches(train, batch_size=2, seed=0)))["waveform"]
    assert with_more.shape == batch.shape and not torch.equal(with_more, batch)
    assert torch.equal(with_more[0, :8000], batch[0, :8000])  # a sample begins with one of the folder's own
    with pytest.raises(ValueError, match="empty holds no recording that can be used"):
        data.fill_with([tmp_path / "empty"])
    (alone,) = data.collate(train[:1], None).values()
    assert alone.shape[1] == round(16000 * data.seconds[train[0]])
