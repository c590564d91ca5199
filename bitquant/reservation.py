"""One writer at a time for an output directory, and no leftovers of those that were killed."""

import os
import re
import shutil
import uuid
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from bitquant.swap import OLD

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None

NEW = ".new"
_SCRATCH = re.compile(rf"[0-9a-f]{{32}}({NEW}|{OLD})")
_held = ContextVar("held", default=())


@contextmanager
def reserved(directory):
    """Keeps other processes away from an output directory inside the block; a block inside the block is no other.

    A file beside it is locked, which a kill unlocks. First, what killed writers left is removed, and an old directory
    that one had set aside is put back. Missing parents are made, and removed again when nothing came into them. Where
    files cannot be locked, nothing is kept away and nothing removed.

    Args:
        directory (str or Path): need not exist.

    Raises:
        BlockingIOError: another process is writing it.
        OSError: it cannot be written, or is a loop of symbolic links.
    """
    directory = resolve(directory)
    if directory in _held.get():
        yield
        return
    made = missing_parents(directory)
    file, descriptor = directory.with_name(f".{directory.name}.lock"), None
    token = _held.set((*_held.get(), directory))
    try:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(file)
        except BlockingIOError:
            raise BlockingIOError(f"another process is writing {directory}: wait for it or write elsewhere") from None
        except OSError as error:
            raise OSError(f"output {directory} cannot be written: {error.strerror}") from None
        if descriptor is not None:
            _clean(directory)
        yield
    finally:
        _held.reset(token)
        if descriptor is not None:
            file.unlink(missing_ok=True)  # before others can lock it: they look whether it is still there
            os.close(descriptor)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def scratch(directory):
    """A new name beside a directory for what is unfinished or no longer needed: ``reserved`` removes what is there."""
    return directory.with_name(f".{directory.name}.{uuid.uuid4().hex}{NEW}")


def resolve(path):
    """The absolute path without symbolic links; OSError for a loop of them."""
    path = Path(os.path.realpath(path))
    for part in (path, *path.parents):
        if part.is_symlink():
            raise OSError(f"output {path} cannot be written: {part} is a loop of symbolic links")
    return path


def missing_parents(path):
    """The folders above a path that do not exist, the deepest first."""
    return [parent for parent in path.parents if not parent.exists()]


def _lock(file):
    """Descriptor of the locked file, or None where there are no locks; BlockingIOError when another process has it."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
            os.close(descriptor)  # its holder has just removed it
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:  # a file system without locks
            os.close(descriptor)
            file.unlink(missing_ok=True)
            return None


def _clean(directory):
    """Puts back an old directory that nothing has replaced, and removes what else killed writers left."""
    start = f".{directory.name}."
    for path in directory.parent.iterdir():
        if not (path.name.startswith(start) and _SCRATCH.fullmatch(path.name.removeprefix(start))):
            continue
        if path.suffix == OLD and not directory.exists():
            path.rename(directory)
        else:
            shutil.rmtree(path, ignore_errors=True)
