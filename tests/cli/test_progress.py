"""The training bar on a terminal and in a log file."""

import io

import pytest

from bitquant.cli.progress import TrainingBar, describe

STATE = {"step": 25, "steps": 100, "loss": 0.12345, "flip_ratio": 0.0042, "tokens_per_s": 12345.6, "eta_s": 83.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_line_shows_all_numbers():
    assert describe(STATE) == (
        "[######..................] 25/100  loss 0.1235  flips 0.420%  12,346 tokens/s  1:23 left"
    )
    assert describe({"step": 0, "steps": 0}) == "[........................] 0/0"


def test_terminal_redraws_one_line():
    stream = Terminal()
    with TrainingBar(stream) as bar:
        bar(STATE)
        bar({**STATE, "step": 26})  # too soon to redraw
        bar({**STATE, "step": 100})
        bar.say("packing")
    text = stream.getvalue()
    assert text.count("\r") == 2
    assert text.count("\n") == 2
    assert text.endswith("packing\n")


def test_log_gets_plain_lines():
    stream = io.StringIO()
    with TrainingBar(stream) as bar:
        for step in range(1, 101):
            bar({**STATE, "step": step})
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]
    assert "\r" not in stream.getvalue()


def test_line_is_closed_after_an_error():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), TrainingBar(stream) as bar:
        bar(STATE)
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\n")
