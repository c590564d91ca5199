"""Two directories change places, at once where the system can."""

import ctypes
import errno
import os
import sys

OLD = ".old"  # suffix of a directory set aside, whole, until the new one stands in its place
_HERE = -100  # AT_FDCWD: paths are those of this process
_EXCHANGE = 2  # RENAME_EXCHANGE
# what a system or a file system without it answers
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchange(fresh, directory):
    """Swaps two directories of one parent. Without help of the system there is a moment in which nothing stands at
    ``directory``: ``bitquant.reservation.reserved`` puts back what a kill then leaves under the suffix ``OLD``.

    Args:
        fresh (Path), directory (Path): both exist.
    """
    if _swapped(fresh, directory):
        return
    old = fresh.with_suffix(OLD)
    try:
        directory.rename(old)
        fresh.rename(directory)
    except BaseException:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
    old.rename(fresh)


def _swapped(first, second):
    """Swaps two paths in one step of the system; False where it has none."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # an old C library
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(second))
