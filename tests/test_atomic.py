"""Directories that appear whole or not at all."""

import errno
import os

import pytest

from bitquant.atomic import check_replaceable, replacing, replacing_file, write
from bitquant.reservation import reserved


def listing(folder):
    return sorted(os.listdir(folder))


def always(directory):
    return True


def test_new_directory_with_parents(tmp_path):
    with replacing(tmp_path / "a" / "b") as fresh:
        write(fresh / "file", b"new")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"
    assert listing(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), replacing(tmp_path / "a" / "b") as fresh:
        write(fresh / "file", b"half")
        raise error
    assert listing(tmp_path) == []


def test_replacing_keeps_the_old_until_the_end(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "file").write_text("old")
    with pytest.raises(RuntimeError), replacing(target, overwrite=True, replaceable=always) as fresh:
        write(fresh / "file", b"half")
        raise RuntimeError
    assert (target / "file").read_text() == "old"
    with replacing(target, overwrite=True, replaceable=always) as fresh:
        write(fresh / "other", b"new")
        assert (target / "file").read_text() == "old"
    assert listing(target) == ["other"]
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("suffix", [".new", ".old"])
def test_old_comes_back_when_a_rename_fails(tmp_path, monkeypatch, suffix):
    target = tmp_path / "out"
    target.mkdir()
    (target / "file").write_text("old")
    rename = type(target).rename

    def fails(self, destination):
        if suffix in (self.suffix, destination.suffix):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, destination)

    monkeypatch.setattr("bitquant.swap._swapped", lambda first, second: False)
    monkeypatch.setattr(type(target), "rename", fails)
    with pytest.raises(OSError), replacing(target, overwrite=True, replaceable=always):
        pass
    monkeypatch.undo()
    with reserved(target):
        assert (target / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="never replaced"):
            check_replaceable(tmp_path / "home", overwrite=overwrite)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_replaceable(tmp_path / "home", replaceable=always)


def test_an_empty_directory_is_not_in_the_way(tmp_path):
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out") as fresh:
        write(fresh / "file", b"new")
    assert listing(tmp_path / "out") == ["file"]


def test_a_file_as_parent_is_unwritable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot be written"):
        check_replaceable(tmp_path / "file" / "out")


def test_a_link_is_followed_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as fresh:
        write(fresh / "file", b"new")
    assert (tmp_path / "link").is_symlink()
    assert listing(tmp_path / "real") == ["file"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "facts.json"
    with replacing_file(file) as fresh:
        assert fresh.suffix == ".json" and not file.exists()
        fresh.write_text("first")
    with pytest.raises(RuntimeError), replacing_file(file) as fresh:
        fresh.write_text("half")
        raise RuntimeError
    assert file.read_text() == "first" and list(tmp_path.iterdir()) == [file]
    (tmp_path / ".facts.new.json").write_text("what a kill left")
    with replacing_file(file) as fresh:
        fresh.write_text("second")
    assert file.read_text() == "second" and list(tmp_path.iterdir()) == [file]
