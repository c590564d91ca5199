"""A model made by a function of the user's, ``package.module:factory``, with weights from a safetensors file."""

import importlib
import os
import re
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from bitquant.sources.files import PICKLES, check_finite, read_headers, refuse_pickle
from bitquant.sources.source import Source

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def recognises(name):
    """Whether this is ``package.module:factory`` and no existing path."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def check(name, weights):
    """Raises ValueError or FileNotFoundError for weights that are missing, pickled or damaged; returns the headers."""
    if weights is None:
        raise ValueError(f"{name} needs its weights: --weights FILE.safetensors")
    weights = Path(weights)
    if weights.suffix in PICKLES:
        raise ValueError(refuse_pickle(weights))
    if not weights.is_file():
        raise FileNotFoundError(f"weights file {weights} does not exist")
    return read_headers([weights])


def load(name, weights):
    """Calls the factory and puts the file's tensors, all of them and nothing else, into what it returns.

    Args:
        name (str): ``package.module:factory``; the current directory is searched too, last.
        weights (str or Path): a safetensors file. ``tokenizer.json`` and ``preprocessor_config.json`` are taken from
            beside it.

    Raises:
        FileNotFoundError: no weights file.
        ValueError: the factory cannot be imported or returns no module, or the weights are pickled, damaged, not
            finite, or of other names or shapes than the module's.
    """
    headers = check(name, weights)
    model = make(name)
    state = model.state_dict()
    # a tied tensor is in the file under one of its names
    storage = {n: (t.data_ptr(), t.shape) if t.numel() else n for n, t in state.items()}
    filled = {storage[n] for n in headers.keys() & state.keys()}
    missing = [n for n in state if storage[n] not in filled]
    for problem, names in (("lacks", missing), ("has unknown", headers.keys() - state.keys())):
        if names:
            raise ValueError(f"{weights} {problem} {_some(names)}: it does not fit {name}")
    for key, (shape, _) in headers.items():
        if shape != tuple(state[key].shape):
            raise ValueError(f"{key} has shape {shape} in {weights} but {tuple(state[key].shape)} by {name}")
    model.load_state_dict(load_file(weights), strict=False)
    model = model.float().eval()
    check_finite(model, weights)
    return Source(name, model, Path(weights).parent, [Path(weights)], factory=name)


def make(name):
    """Imports and calls ``package.module:factory``; ValueError when that gives no ``nn.Module``.

    This runs the user's code: only ever call it with a name the user gave, not one found in a file.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # last, so that no file there takes the place of an installed module
        sys.path.append(os.getcwd())
    try:
        factory = getattr(importlib.import_module(module), attribute)
        model = factory()
    except Exception as error:  # whatever a stranger's code raises
        raise ValueError(f"{name} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _some(names):
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
