"""The kinds of data, and which of them a path holds."""

from bitquant.data.arrays import Arrays
from bitquant.data.kind import check_path, files_below, names_inputs
from bitquant.data.pictures import Pictures
from bitquant.data.recordings import Recordings
from bitquant.data.sentences import Sentences

FIRST = 32  # samples looked at for an example
KINDS = {cls.kind: cls for cls in (Sentences, Recordings, Pictures, Arrays)}


def recognise(path):
    """Kinds of data at a path by the suffixes of its files; a single file of unknown suffix is text.

    Returns:
        dict[str, int]: number of files of each kind found, never empty.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: a pipe or device, or a folder without any file of a known kind.
    """
    path = check_path(path)
    found = {kind: len(files_below(path, cls.suffixes)) for kind, cls in KINDS.items()}
    found = {kind: count for kind, count in found.items() if count}
    if not found and path.is_dir():
        suffixes = ", ".join(suffix for cls in KINDS.values() for suffix in cls.suffixes)
        raise ValueError(f"folder {path} holds no file of a known kind ({suffixes})")
    return found or {Sentences.kind: 1}


def read_data(path, source, **settings):
    """The data at a path, of the kind that its files are and the model takes.

    Args:
        path (str or Path): a file, or a folder that is searched.
        source (Source): the model.
        settings: ``max_length`` in tokens, ``max_seconds``.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: nothing usable is there, the model takes something else, or several kinds would do.
    """
    found = recognise(path)
    fitting = [kind for kind in found if KINDS[kind].fits(source)]
    holds = " and ".join(f"{count} {kind} file{'s' * (count > 1)}" for kind, count in found.items())
    if not fitting:
        raise ValueError(f"{path} holds {holds}, but {source.name} takes {', '.join(source.arguments)}")
    if len(fitting) > 1:
        raise ValueError(f"{path} holds {holds}, and {source.name} could take either: give a folder of one kind")
    return KINDS[fitting[0]].read(path, source, **settings)


def restore(description, source):
    """The data that ``describe`` described, for a model and directory."""
    return KINDS[description["kind"]](description["samples"], source, **description["settings"])


def describe(data, samples):
    """JSON-able description of some samples, for another process."""
    return {"kind": data.kind, "samples": samples, "settings": data.settings()}


def example_inputs(source, path=None):
    """A small batch of the data at a path. Without one, a batch that needs no data: of the first kind that the model's
    arguments name; a model that states a ``sampling_rate`` takes recordings.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: nothing says what the model takes, nothing at the path can be used, or the directory lacks the
            tokenizer or preprocessor.
    """
    if path is not None:
        data = read_data(path, source)
        usable, skipped = data.usable(data.samples[:FIRST])
        if not usable:
            name, reason = skipped[0] if skipped else (path, "it holds nothing")
            raise ValueError(f"none of the first {data.unit} in {path} can be used: {name}: {reason}")
        return data.example_inputs(usable)
    if names_inputs(source):
        return next(cls for cls in KINDS.values() if cls.fits(source)).example(source)
    if hasattr(source.model, "sampling_rate"):
        return Recordings.example(source)
    raise ValueError(f"{source.name} takes {', '.join(source.arguments)}: give it data (--data), nothing says which")
