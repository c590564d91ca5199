"""Text of any shape is split in a time linear in its length."""

import time

import pytest

from bitquant.data.text import read_text, split_sentences

LENGTH = 400_000  # what is quadratic takes minutes for it


@pytest.mark.parametrize(
    "part, tail",
    [
        (".", "x"),
        (". ", "x"),
        ('."', "x"),
        ('.""""""""', "x"),
        (". ((", "a"),
        ("e.g. the cat ", ""),
        ("a ... b ", ""),
        ("A. b", ""),
        ("word ", ""),
        ("x", ""),
        ("今日は。", ""),
        ("This is a sentence. ", ""),
    ],
)
def test_one_long_line(part, tail, tmp_path):
    file = tmp_path / "line.txt"
    file.write_text("Start " + part * (LENGTH // len(part)) + tail, encoding="utf-8")
    start = time.perf_counter()
    assert read_text(file)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("blank", ["\n", " \n", "\r\n", "\t", "\n \n"])
def test_much_white_space(blank, tmp_path):
    file = tmp_path / "blank.txt"
    file.write_text("Start" + blank * (LENGTH // len(blank)) + "end", encoding="utf-8", newline="")
    start = time.perf_counter()
    assert " ".join(read_text(file)) == "Start end"
    assert time.perf_counter() - start < 5


def test_long_runs_are_split_as_short_ones():
    dots = "." * 50_000
    assert split_sentences(f"Wait{dots} What{dots} he said{dots}no") == [f"Wait{dots}", f"What{dots} he said{dots}no"]
    assert split_sentences("One. (Two.) e.g. three. " + "Four. " * 2) == ["One.", "(Two.) e.g. three.", *["Four."] * 2]
