"""Writers of one output directory that are killed, that meet, and that cannot write there."""

import os
import subprocess
import sys
import time
from pathlib import Path

import overwrite_killed
import pytest

from bitquant.atomic import check_replaceable, replacing, write
from bitquant.reservation import reserved

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


@pytest.mark.parametrize("mode", ["swap", "renames"])
def test_killed_at_every_file_operation(tmp_path, mode):
    command = [sys.executable, overwrite_killed.__file__, str(tmp_path), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    out = tmp_path / "new" / "out"
    code = f"import time; from bitquant.reservation import reserved\nwith reserved({str(out)!r}):\n"
    code += " print('here', flush=True); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "here\n"
        for attempt in (check_replaceable, lambda directory: replacing(directory).__enter__()):
            with pytest.raises(BlockingIOError, match="another process is writing .*out: wait for it"):
                attempt(out)
    finally:
        first.kill()
        first.wait()
    with replacing(out) as fresh:
        write(fresh / "file", b"new")
    assert os.listdir(out.parent) == ["out"]


def test_nothing_of_others_is_removed(tmp_path):
    kept = [".out.new", ".out.old", ".out.notes.new", f".out.{'a' * 31}.new", f".other.{'a' * 32}.new", "out.new"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f".out.{'a' * 32}.new").mkdir()
    with reserved(tmp_path / "out"):
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".out.lock"])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_locks_are_handed_over(tmp_path):
    """Many short writers that wait for each other: each finds what the one before left."""
    file, out = tmp_path / "count", tmp_path / "out"
    file.write_text("0")
    code = f"""
from pathlib import Path
from bitquant.reservation import reserved
file, done = Path({str(file)!r}), 0
while done < 50:
    try:
        with reserved({str(out)!r}):
            file.write_text(str(int(file.read_text()) + 1))
            done += 1
    except BlockingIOError:
        pass
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert file.read_text() == "150"
    assert os.listdir(tmp_path) == ["count"]


@pytest.mark.parametrize("name", ["x" * 255, "x" * 230, "x" * 300, "loop", "loop/out", "a/" + "x" * 300 + "/out"])
def test_names_that_cannot_be_written(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="File name too long|loop of symbolic links"):
        check_replaceable(tmp_path / name)
    assert os.listdir(tmp_path) == ["loop"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("bitquant.reservation.fcntl", None)
    left = tmp_path / f".out.{'a' * 32}.new"
    left.mkdir()
    with replacing(tmp_path / "out") as fresh:
        write(fresh / "file", b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [left.name, "out"]


def test_killed_by_chance(tmp_path):
    """A real process, killed at whatever it does then."""
    out = tmp_path / "out"
    overwrite_killed.make_old(out)
    code = "import overwrite_killed\nfrom pathlib import Path\nprint('here', flush=True)\nwhile True: "
    code += f"overwrite_killed.overwrite(Path({str(out)!r}), b'new')"
    environment = {**os.environ, "PYTHONPATH": str(Path(overwrite_killed.__file__).parent)}
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        process.stdout.readline()
        time.sleep(0.01 + 0.007 * attempt)
        process.kill()
        process.wait()
        assert overwrite_killed.content(out) in (b"old", b"new")
    overwrite_killed.overwrite(out, b"end")
    assert os.listdir(tmp_path) == ["out"]
