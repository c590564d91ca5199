"""Directories and files that appear whole or not at all."""

import os
import shutil
from contextlib import contextmanager, suppress

from bitquant.reservation import missing_parents, reserved, resolve, scratch
from bitquant.swap import exchange


def check_replaceable(directory, *, overwrite=False, replaceable=lambda directory: False):
    """Checks that a directory may be created at this path, and that the disk lets us.

    Args:
        directory (str or Path): need not exist, nor its parents; an empty directory is as good as none.
        overwrite (bool): allow an existing directory that is ``replaceable``.
        replaceable (callable): directory -> bool, whether it is one of ours.

    Raises:
        FileExistsError: something is in the way.
        OSError: the directory cannot be written, or another process writes it.
    """
    directory = resolve(directory)
    with reserved(directory):
        empty = directory.is_dir() and not any(directory.iterdir())
        if os.path.lexists(directory) and not empty:
            if not (directory.is_dir() and replaceable(directory)):
                raise FileExistsError(
                    f"output {directory} exists and is not a bitquant checkpoint: it is never replaced"
                )
            if not overwrite:
                raise FileExistsError(f"output {directory} exists: choose another place or overwrite it (--overwrite)")
        probe = scratch(directory)
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise OSError(f"output {directory} cannot be written: {error.strerror}") from None


@contextmanager
def replacing(directory, *, overwrite=False, replaceable=lambda directory: False):
    """Yields a fresh sibling directory that takes the target's place when the block succeeds, and is gone otherwise.

    Arguments and errors are those of ``check_replaceable``. At every moment the old or the new directory stands at the
    target, whole; what a kill leaves beside it, the next writer of the same target removes.
    """
    with reserved(directory):
        check_replaceable(directory, overwrite=overwrite, replaceable=replaceable)
        directory = resolve(directory)
        fresh = scratch(directory)
        try:
            fresh.mkdir()
            yield fresh
            sync(fresh)
            if directory.exists():
                exchange(fresh, directory)
            else:
                fresh.rename(directory)
            sync(directory.parent)
        finally:  # half of the new one, or the old one
            shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def replacing_file(file):
    """Yields a temporary name beside a file, of the same suffix, to write: it takes the file's place when the block
    succeeds, and is gone otherwise, with parents that were made for it. What a kill leaves there is overwritten the
    next time.

    Raises:
        OSError: it cannot be written: known before the block begins.
    """
    file = resolve(file)
    fresh = file.with_name(f".{file.stem}.new{file.suffix}")
    made = missing_parents(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.touch()
    except OSError as error:
        raise OSError(f"output {file} cannot be written: {error.strerror}") from None
    try:
        yield fresh
        with open(fresh, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(fresh, file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def write(file, content):
    """Writes bytes to a new file, down to the disk."""
    with open(file, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path):
    """Flushes a file or directory entry to the disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some cannot sync a directory; the rename is atomic without it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
