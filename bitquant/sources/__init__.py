"""Where a float model comes from: one file a kind, each with ``recognises(name)`` and ``load(name, weights)``."""

from bitquant.sources import factory, huggingface
from bitquant.sources.files import PICKLES, WEIGHTS, model_directory, read_config, read_headers, weight_files
from bitquant.sources.huggingface import load_source
from bitquant.sources.source import PREPROCESSOR, TOKENIZER, Source

KINDS = (factory, huggingface)  # the first that recognises the name; a directory is left to the last


def open_source(name, weights=None):
    """Loads a float model by the name a user gives.

    Args:
        name (str): a Hugging Face directory, or ``package.module:factory``.
        weights (str or Path, optional): the safetensors file of a factory's model.

    Returns:
        Source: with the model in float32 and eval mode.

    Raises:
        FileNotFoundError, ModuleNotFoundError, ValueError: as the kind's ``load`` says.
    """
    return kind_of(name).load(name, weights)


def check_name(name, weights=None):
    """Raises what is wrong with a name and weights before anything large is read or any code imported."""
    kind_of(name).check(name, weights)


def kind_of(name):
    """The module of ``KINDS`` that reads this name."""
    return next(kind for kind in KINDS if kind.recognises(str(name)))


__all__ = [
    "PICKLES",
    "PREPROCESSOR",
    "TOKENIZER",
    "WEIGHTS",
    "Source",
    "check_name",
    "load_source",
    "model_directory",
    "open_source",
    "read_config",
    "read_headers",
    "weight_files",
]
