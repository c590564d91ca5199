"""Sentences from files: splitting, hard-wrapped prose, and bad input."""

import pytest

from bitquant.data import read_text, split_sentences


def test_splits_after_punctuation_only():
    text = 'Dr. A. Smith met Mr. Jones at 3.14 p.m. on foot. "Was it late?" he asked. It was! e.g. at night.'
    assert split_sentences(text) == [
        "Dr. A. Smith met Mr. Jones at 3.14 p.m. on foot.",
        '"Was it late?" he asked.',
        "It was! e.g. at night.",
    ]


def test_splits_text_without_spaces():
    assert split_sentences("今日は雨です。明日は晴れます！") == ["今日は雨です。", "明日は晴れます！"]


def test_parts_without_letters_are_dropped():
    assert split_sentences("1 2 3. *** Words stay.") == ["*** Words stay."]
    assert split_sentences(" \n ") == []


def test_hard_wrapped_lines_are_joined_and_short_lines_stand_alone(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(
        "This sentence was broken by an editor that wraps lines near\n"
        "the seventieth column. This one too, since it is also as\n"
        "long as that.\n\na title\nanother quite different and much longer entry of a list\nthird\n"
    )
    assert read_text(file) == [
        "This sentence was broken by an editor that wraps lines near the seventieth column.",
        "This one too, since it is also as long as that.",
        "a title",
        "another quite different and much longer entry of a list",
        "third",
    ]


def test_folder_is_read_in_name_order_without_hidden_and_other_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.txt", "a.md", "sub/c.rst", "d.py", ".hidden.txt", ".git/e.txt"):
        (tmp_path / name).write_text(f"From {name[0]} file", encoding="utf-8")
    assert read_text(tmp_path) == ["From a file", "From b file", "From s file"]


def test_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffHello there.\r\nGood bye now.".encode())
    assert read_text(tmp_path / "a.txt") == ["Hello there.", "Good bye now."]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no sentence"),
        (b"  \n\n 12 34 \n", "holds no sentence"),
        (b"text \xff\xfe", "not UTF-8 text: bad byte at offset 5"),
        (b"text\0more", "binary file"),
    ],
)
def test_file_without_text_is_refused(tmp_path, content, message):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(file)


def test_missing_path_and_folder_without_text_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no text file"):
        read_text(tmp_path)
