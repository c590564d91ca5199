"""A Hugging Face directory: ``config.json`` and safetensors weights, for the classes of transformers."""

import torch
from safetensors import SafetensorError

from bitquant.skeleton import build_skeleton, import_transformers, model_class, silent
from bitquant.sources.files import check_finite, model_directory, read_config, read_headers, weight_files
from bitquant.sources.source import Source


def recognises(name):
    """Any path: the kind that is left when no other recognises a name."""
    return True


def check(name, weights):
    """Raises FileNotFoundError or ValueError when this is no directory, or weights are given beside it."""
    if weights is not None:
        raise ValueError(f"--weights belongs to a package.module:factory; {name} brings its own weights")
    return model_directory(name)


def load(name, weights):
    """``load_source`` for the registry."""
    check(name, weights)
    return load_source(name)


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
    files = weight_files(directory)
    model = _from_pretrained(directory, config, read_headers(files))
    check_finite(model, directory)
    return Source(str(path), model, directory, files)


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
