"""Overwrites directories and kills itself with SIGKILL before the n-th file operation, for every n; without torch.

``python overwrite_killed.py FOLDER MODE``: prints the number of operations. MODE ``swap`` exchanges the directories at
once, ``renames`` does it as where the system cannot.
"""

import builtins
import os
import shutil
import signal
import sys
from pathlib import Path

from bitquant import atomic, reservation, swap

OPERATIONS = "open mkdir rmdir unlink remove rename replace fsync scandir listdir close stat write".split()  # noqa: SIM905
FILES = ("a", "b", "c/d")


def make(folder, content):
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        atomic.write(folder / name, content * 1000)


def content(folder):
    """What stands there, all of its files alike; AssertionError otherwise."""
    found = {(folder / name).read_bytes() for name in FILES}
    assert len(found) == 1 and {p.name for p in folder.iterdir()} == {"a", "b", "c"}, os.listdir(folder)
    return found.pop()[:3]


def overwrite(out, new):
    with atomic.replacing(out, overwrite=True, replaceable=lambda directory: True) as fresh:
        make(fresh, new)


def killed_at(number, out):
    """Whether a child that overwrites ``out`` got as far as its operation ``number``, where it was killed."""
    child = os.fork()
    if child == 0:
        done = 0

        def counting(function):
            def called(*arguments, **options):
                nonlocal done
                done += 1
                if done == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return called

        for name in OPERATIONS:
            setattr(os, name, counting(getattr(os, name)))
        builtins.open = counting(open)
        swap._swapped = counting(swap._swapped)
        overwrite(out, b"new")
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder, mode):
    if mode == "renames":
        swap._swapped = lambda first, second: False
    number, seen = 0, set()
    while True:
        number += 1
        out = folder / str(number) / "out"
        make_old(out)
        killed = killed_at(number, out)
        if mode == "renames":  # the next writer's first act
            with reservation.reserved(out):
                pass
        seen.add(content(out))
        overwrite(out, b"end")
        assert os.listdir(out.parent) == ["out"], os.listdir(out.parent)
        assert content(out) == b"end"
        shutil.rmtree(out.parent)
        if not killed:
            break
    assert seen == {b"old", b"new"}, seen
    print(number - 1)


def make_old(out):
    out.mkdir(parents=True)
    make(out, b"old")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
