"""Sizes and times."""

import pytest
import torch

from bitquant.measure import megabytes, milliseconds, times

INPUTS = {"input_ids": torch.zeros(2, 3, dtype=torch.int64)}


def test_megabytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1_500_000)
    (tmp_path / "b").write_bytes(b"x" * 500_000)
    assert megabytes(tmp_path.iterdir()) == pytest.approx(2.0)


class Counts(torch.nn.Module):
    def __init__(self, log, name):
        super().__init__()
        self.log, self.name = log, name

    def forward(self, **inputs):
        self.log.append((self.name, tuple(inputs["input_ids"].shape)))


def test_models_take_turns():
    log = []
    times = milliseconds({n: Counts(log, n) for n in "ab"}, INPUTS, seconds=0.0)
    assert [name for name, _ in log] == list("ab") * 6  # one warm-up round and five counted
    assert set(times) == {"a", "b"}
    assert all(t >= 0 for t in times.values())


def test_facts_stand_beside_the_times():
    rows = times({"before": Counts([], "before")}, [({"batch": 1, "tokens": 3}, INPUTS)])
    assert [(row["batch"], row["tokens"]) for row in rows] == [(1, 3)]
    assert rows[0]["before"] >= 0
