"""What every kind of data has in common; a kind is one file with a subclass, listed in ``bitquant.data``."""

from pathlib import Path

from bitquant.data.batches import Batches
from bitquant.data.split import hold_out

# how transformers names the inputs of each kind; a model that uses none of them may take anything
KNOWN_ARGUMENTS = {"input_ids", "input_values", "input_features", "pixel_values"}


def names_inputs(source):
    """Whether the model's arguments say what kind of input it takes."""
    return bool(KNOWN_ARGUMENTS & set(source.arguments))


class Data:
    """Samples, and how they become inputs of one model.

    Args:
        samples (list): JSON-able: sentences, file names, row numbers.
        source (Source): the model that takes them, and the directory with its tokenizer or preprocessor.
        max_length (int): longest text, in tokens. Default: 128.
        max_seconds (float): longest recording; a longer one is cut. Default: 10.

    Class attributes: ``kind``, ``unit`` (what to call samples), ``suffixes`` of its files, ``batch_size`` where the
    user names none, and ``most_held_out`` samples to measure on.
    """

    kind, unit, suffixes = "", "samples", ()
    batch_size, most_held_out = 32, 1000

    def __init__(self, samples, source, *, max_length=128, max_seconds=10.0):
        self.samples, self.source = samples, source
        self.max_length, self.max_seconds = max_length, max_seconds

    @classmethod
    def read(cls, path, source, **settings):
        """All samples at a path. FileNotFoundError or ValueError when there is none."""
        raise NotImplementedError

    @classmethod
    def fits(cls, source):
        """Whether the names of the model's arguments allow this kind of data."""
        return True

    @classmethod
    def example(cls, source):
        """A small batch that needs no data."""
        raise NotImplementedError

    def key(self, sample):
        """str that decides on which side of the split a sample falls; equal keys are repetitions."""
        return sample

    def split(self):
        """(training samples, held-out samples); see ``hold_out``."""
        return hold_out(self.samples, key=self.key, unit=self.unit)

    def usable(self, samples):
        """Leaves out what cannot be used: (samples kept, list of (name, reason) of the others)."""
        return samples, []

    def collate(self, samples, rng):
        """Keyword arguments of the model for some samples; see ``Batches``."""
        raise NotImplementedError

    def batches(self, samples, *, batch_size, seed=None):
        """``Batches`` of usable samples: endless with a seed, one pass in order without."""
        return Batches(samples, self.collate, batch_size=batch_size, seed=seed)

    def in_order(self, samples):
        """Samples in a good order for one pass: similar lengths together."""
        return samples

    def example_inputs(self, samples):
        """A small batch of usable samples, to run the model on while it is being looked at."""
        return self.collate(samples[:2], None)

    def timings(self):
        """list[tuple[dict, dict]]: shapes to time as facts such as ``{"batch": 1, "tokens": 16}``, with inputs."""
        raise NotImplementedError

    def settings(self):
        """JSON-able keyword arguments of the constructor, but for the samples."""
        return {"max_length": self.max_length, "max_seconds": self.max_seconds}


def check_path(path):
    """The Path that data are read from. FileNotFoundError or ValueError when it is neither a file nor a folder: reading
    a pipe or a device may never end."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data path {path} does not exist")
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"data path {path} is neither a file nor a folder: write what it gives into a file first")
    return path


def files_below(folder, suffixes):
    """Visible files with one of these suffixes below a folder, sorted; a file that has one is itself the list."""
    folder = Path(folder)
    if folder.is_file():
        return [folder] if folder.suffix.lower() in suffixes else []
    visible = (p for p in folder.rglob("*") if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(p for p in visible if p.suffix.lower() in suffixes and p.is_file())
