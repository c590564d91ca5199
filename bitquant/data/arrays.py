"""Arrays as data: an ``.npz`` file with one array for each of the model's arguments, the first axis for samples."""

import math
import os
import zlib
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from bitquant.data.kind import Data


class Arrays(Data):
    """Rows of arrays. Floats become float32, whole numbers int64; bool stays.

    Args:
        samples (list[int]): row numbers.
        source (Source): the model.
        file (str): the ``.npz`` file.

    Raises:
        ValueError: no readable file without Python objects that fits into memory, an array that is no argument of the
            model, or arrays of different lengths.
    """

    kind, unit, suffixes = "array", "rows", (".npz",)

    def __init__(self, samples, source, *, file, **settings):
        super().__init__(samples, source, **settings)
        self.file = Path(file)
        self.arrays = {name: _plain(array, name, file) for name, array in read_npz(self.file).items()}
        unknown = sorted(self.arrays.keys() - set(source.arguments))
        if unknown:
            takes = ", ".join(source.arguments)
            raise ValueError(f"{file} holds {unknown[0][:100]!r}, but {source.name} takes {takes}")
        if len({len(array) for array in self.arrays.values()}) != 1:
            lengths = ", ".join(f"{name} {len(array)}" for name, array in self.arrays.items())
            raise ValueError(f"the arrays of {file} differ in their first axis, the samples: {lengths or 'none'}")

    @classmethod
    def read(cls, path, source, **settings):
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder: give the .npz file in it")
        data = cls([], source, file=str(Path(path).resolve()), **settings)
        data.samples = list(range(len(next(iter(data.arrays.values())))))
        return data

    def key(self, sample):
        return blake2b(b"".join(a[sample].tobytes() for a in self.arrays.values()), digest_size=16).hexdigest()

    def usable(self, samples):
        finite = {i for i in samples if all(np.isfinite(a[i]).all() for a in self.arrays.values())}
        skipped = [(f"row {i}", "it holds NaN or infinite values") for i in samples if i not in finite]
        return [i for i in samples if i in finite], skipped

    def collate(self, samples, rng):
        return {name: torch.from_numpy(array[samples]) for name, array in self.arrays.items()}

    def timings(self):
        rows = len(next(iter(self.arrays.values())))
        batches = [[i % rows for i in range(batch)] for batch in (1, self.batch_size)]
        return [({"batch": len(batch)}, self.collate(batch, None)) for batch in batches]

    def settings(self):
        return {**super().settings(), "file": str(self.file)}


def read_npz(file):
    """The arrays of an ``.npz`` file: dict of ndarray.

    Raises:
        ValueError: it is damaged, holds Python objects, or claims more than half of this machine's memory.
    """
    arrays, left = {}, _memory() // 2
    try:
        with ZipFile(file) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                with archive.open(member) as stream:
                    dtype, values = _header(stream)
                if dtype.hasobject:
                    raise _Refused(f"{file} holds Python objects, which are not read because that can run code")
                left -= values * (8 if dtype.kind in "iu" else max(dtype.itemsize, 4))  # as ``_plain`` makes them
                if left < 0:
                    raise _Refused(f"{file} claims to hold more than half of this machine's memory: {name[:100]!r}")
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except _Refused:
        raise
    except (OSError, EOFError, BadZipFile, zlib.error, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged or not an .npz file: {str(error)[:200]}") from None
    return arrays


class _Refused(ValueError):
    pass


def _header(stream):
    """dtype and number of values that the header of an array claims."""
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"format {version} of an array is not one of numbers")
    shape, _, dtype = read[version](stream)
    if not all(0 <= length < 2**48 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return dtype, math.prod(shape)


def _memory():
    """Bytes of this machine's memory, where it tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**34


def _plain(array, name, file):
    if array.ndim < 1:
        raise ValueError(f"{name!r} in {file} has no first axis for the samples")
    if array.dtype == bool:
        return array
    for kind, wanted in ((np.integer, np.int64), (np.floating, np.float32)):
        if np.issubdtype(array.dtype, kind):
            return array.astype(wanted, copy=False)
    raise ValueError(f"{name!r} in {file} holds {array.dtype}, not numbers")
