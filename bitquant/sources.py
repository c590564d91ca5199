"""Where a model comes from: a Hugging Face directory with safetensors weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from bitquant.data import Tokenizer
from bitquant.skeleton import build_skeleton, import_transformers, model_class, silent

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".pt2")
MAX_CONFIG_BYTES = 64 * 2**20


@dataclass
class Source:
    """A float model as it was found, with what its inputs need.

    Args:
        directory: where it was read from.
        model: float32, eval mode.
        tokenizer: None when the directory holds none.
    """

    directory: Path
    model: nn.Module
    tokenizer: Tokenizer | None

    def example_inputs(self):
        """Two sentences of different length, padded: a dict of int64 tensors (2, T)."""
        if self.tokenizer is None:
            raise ValueError(f"{self.directory} holds no tokenizer.json: without it no example input can be made")
        return self.tokenizer(["A short sentence.", "A longer sentence with a few more words in it than the first."])

    def longest(self):
        """Most tokens that the model's position table allows; None when there is no limit."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        tables = (m for name, m in self.model.named_modules() if name.endswith("position_embeddings"))
        # RoBERTa and its kin count positions from behind the padding index
        reserved = max((m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None), default=0)
        return positions and positions - reserved

    def files(self):
        """The files that loading needs: weights, ``config.json``, ``tokenizer.json``."""
        rest = (self.directory / name for name in ("config.json", "tokenizer.json"))
        return weight_files(self.directory) + [file for file in rest if file.is_file()]


def load_source(path):
    """Loads a Hugging Face model directory without network access, unpickling or code from the directory.

    Args:
        path (str or Path): holds ``config.json``, ``model.safetensors`` (or its shards) and a tokenizer.

    Returns:
        Source: the model class is the first of ``architectures`` that transformers knows.

    Raises:
        FileNotFoundError: the path does not exist.
        ModuleNotFoundError: transformers is not installed.
        ValueError: not a model directory, pickled or damaged weights, shapes that differ from ``config.json``, missing
            or non-finite weights, unknown architecture.
    """
    directory = model_directory(path)
    config = read_config(directory)
    quantized = config.get("quantization_config") or {}
    if quantized:
        method = quantized.get("quant_method", "another tool") if isinstance(quantized, dict) else "another tool"
        raise ValueError(f"{directory} is already quantized by {method}: give the float model")
    model = _from_pretrained(directory, config, read_headers(weight_files(directory)))
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"weight {name} of {directory} holds NaN or infinite values")
    return Source(directory, model, load_tokenizer(directory, config))


def model_directory(path):
    """Checks that the path is a directory that can hold a model."""
    path = Path(path)
    if path.suffix in PICKLES and not path.is_dir():
        raise ValueError(_refuse_pickle(path))
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
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{file} is too large to be a configuration")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return config


def weight_files(directory):
    """The safetensors files of a directory; ValueError when there is none, with what to do about pickled ones."""
    directory = Path(directory)
    whole = directory / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(directory.glob("model-*-of-*.safetensors"))
    if files:
        return files
    pickles = sorted(p for p in directory.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise ValueError(_refuse_pickle(pickles[0]))
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
            raise ValueError(f"{file} is truncated or damaged: {error}") from None
    return tensors


def load_tokenizer(directory, config):
    """The directory's tokenizer with the configuration's padding id, or None when there is none."""
    file = Path(directory) / "tokenizer.json"
    if not file.is_file():
        return None
    pad_id = config.get("pad_token_id")
    return Tokenizer(file, pad_id if isinstance(pad_id, int) and pad_id >= 0 else None)


def _from_pretrained(directory, config, tensors):
    transformers = import_transformers()
    elements = sum(torch.Size(shape).numel() for shape, _ in tensors.values())
    # refuses absurd sizes, and gives the shapes to compare with
    expected = build_skeleton(config, tensors=len(tensors), elements=elements).state_dict()
    for name in sorted(expected.keys() & tensors.keys()):
        found, wanted = tensors[name][0], tuple(expected[name].shape)
        if found != wanted:
            raise ValueError(f"{name} has shape {found} in the weights file but {wanted} by config.json")
    parsed, cls = model_class(config)
    try:
        with silent(transformers):
            model, info = cls.from_pretrained(
                directory,
                config=parsed,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"the weights in {directory} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{directory} holds no weights for {', '.join(missing[:3])}{more}")
    return model.eval()


def _refuse_pickle(path):
    return (
        f"{path} is a pickle, which is not read because unpickling can run code; where you trust it, make a "
        "safetensors file of it: safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
    )
