"""Damaged checkpoints: one short sentence or equal outputs. ``python -m tests.fuzz --minutes N`` goes on for longer."""

import time

import pytest

from tests.fuzz.judge import fuzz
from tests.fuzz.subjects import subjects

SECONDS = 20


def test_damaged_checkpoints_are_refused_in_a_sentence_or_run(tmp_path):
    pytest.importorskip("transformers")
    made = subjects(tmp_path)
    (tmp_path / "damaged").mkdir()
    end = time.monotonic() + SECONDS
    outcomes = fuzz(made, tmp_path / "damaged", 0, lambda count: count < 400 and time.monotonic() < end)
    assert outcomes["refused"] > 10
