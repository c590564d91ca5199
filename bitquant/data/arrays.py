"""Arrays as data: an ``.npz`` file with one array for each of the model's arguments, the first axis for samples."""

import zlib
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

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
        ValueError: no readable file without Python objects, an array that is no argument of the model, or arrays of
            different lengths.
    """

    kind, unit, suffixes = "array", "rows", (".npz",)

    def __init__(self, samples, source, *, file, **settings):
        super().__init__(samples, source, **settings)
        self.file = Path(file)
        self.arrays = {name: _plain(array, name, file) for name, array in _load(self.file).items()}
        unknown = sorted(self.arrays.keys() - set(source.arguments))
        if unknown:
            raise ValueError(f"{file} holds {unknown[0]!r}, but {source.name} takes {', '.join(source.arguments)}")
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


def _load(file):
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(f"{file} holds Python objects, which are not read because that can run code") from None
        raise ValueError(f"{file} is damaged or not an .npz file: {error}") from None
    except (OSError, EOFError, BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(f"{file} is damaged or not an .npz file: {error}") from None


def _plain(array, name, file):
    if array.ndim < 1:
        raise ValueError(f"{name!r} in {file} has no first axis for the samples")
    if array.dtype == bool:
        return array
    for kind, wanted in ((np.integer, np.int64), (np.floating, np.float32)):
        if np.issubdtype(array.dtype, kind):
            return array.astype(wanted, copy=False)
    raise ValueError(f"{name!r} in {file} holds {array.dtype}, not numbers")
