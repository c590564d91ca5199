"""The files of a model: directories, ``config.json``, safetensors headers; pickles are refused unread."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bitquant.fields import first_line
from bitquant.json_object import read_object

WEIGHTS = "bitquant.safetensors"  # of a bitquant checkpoint
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".pt2")


def model_directory(path):
    """Checks that the path is a directory that can hold a model."""
    path = Path(path)
    if path.suffix in PICKLES and not path.is_dir():
        raise ValueError(refuse_pickle(path))
    if not path.exists():
        raise FileNotFoundError(f"model path {path} does not exist")
    if not path.is_dir():
        raise ValueError(f"{path} is a file: give the directory that holds config.json and model.safetensors")
    return path


def read_config(directory):
    """Contents of ``config.json`` as a dict; ValueError when it is missing, oversized or not a JSON object."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory} is not a model directory: it holds no config.json")
    return read_object(file)


def weight_files(directory):
    """The safetensors files of a directory; ValueError when there is none, with what to do about pickled ones."""
    directory = Path(directory)
    whole = [file for name in (WEIGHTS, "model.safetensors") if (file := directory / name).is_file()][:1]
    files = whole or sorted(directory.glob("model-*-of-*.safetensors"))
    if files:
        return files
    pickles = sorted(p for p in directory.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise ValueError(refuse_pickle(pickles[0]))
    raise ValueError(f"{directory} is not a model directory: it holds no model.safetensors")


def read_headers(files):
    """Shapes and dtypes from the headers of safetensors files, values unread.

    Returns:
        dict[str, tuple[tuple[int, ...], str]]: tensor name to shape and safetensors dtype name (``"F32"``).
    """
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    part = opened.get_slice(name)
                    tensors[name] = (tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{file} is truncated or damaged: {first_line(error)}") from None
    return tensors


def check_finite(model, place):
    """ValueError naming the first parameter that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"weight {name} of {place} holds NaN or infinite values")


def refuse_pickle(path):
    """The sentence for a pickled file: why it is not read, and what to do."""
    return (
        f"{path} is a pickle, which is not read because unpickling can run code; where you trust it, make a "
        "safetensors file of it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
