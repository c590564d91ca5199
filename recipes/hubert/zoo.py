"""Every preset as a function without arguments: ``bitquant profile recipes.hubert.zoo:sparseformer_dn``."""

from functools import partial

from .config import presets
from .model import Hubert


def __getattr__(name):
    if name not in presets():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(Hubert.from_preset, name)


def __dir__():
    return presets()
