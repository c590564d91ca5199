"""Sizes and times."""

import pytest
import torch

from bitquant.measure import megabytes, milliseconds, text_inputs, text_times


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
    times = milliseconds({n: Counts(log, n) for n in "ab"}, text_inputs(2, 3, 10), seconds=0.0)
    assert [name for name, _ in log] == list("ab") * 6  # one warm-up round and five counted
    assert set(times) == {"a", "b"}
    assert all(t >= 0 for t in times.values())


def test_shapes_stay_within_the_models_positions():
    log = []
    rows = text_times({"before": Counts(log, "before")}, 9, longest=40, shapes=((1, 16), (1, 128), (1, 512)))
    assert [(row["batch"], row["tokens"]) for row in rows] == [(1, 16), (1, 40)]
    assert {shape for _, shape in log} == {(1, 16), (1, 40)}
