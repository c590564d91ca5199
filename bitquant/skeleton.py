"""From a transformers ``config.json`` to a model without weights, within bounds taken from the weights file.

A configuration is untrusted: one that asks for a billion layers or a terabyte matrix is refused while it is being
built on the meta device, before anything of that size exists.
"""

import sys
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from bitquant.fields import LARGEST, first_line, shown

MAX_LABELS = 1_000_000
ATTENTION = ("eager", "sdpa")  # attention in plain torch, the only ones that are loaded again
BUFFERS = 1 << 26  # values that buffers may hold beside those that go with the weights
# never taken from a file, at any depth: they would pick code, kernels, other files or another quantizer to load with
_NOT_FROM_FILE = {
    "auto_map",
    "quantization_config",
    "custom_pipelines",
    "transformers_weights",
    *(f"{a}{b}_implementation{c}" for a in ("", "_") for b in ("attn", "experts") for c in ("", "_internal")),
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),  # of timm
}
_TIMM = ("architecture", "backbone")  # names that timm looks up in a hub or a directory where they hold a colon
_SIZES = ("kernel_size", "stride", "padding", "dilation", "output_padding")


def import_transformers():
    """The transformers module, silent. Raises ModuleNotFoundError with the command that installs it."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a Hugging Face model needs an extra: pip install 'bitquant-torch[hf]'") from None
    return transformers


@contextmanager
def silent(transformers):
    """Turns off transformers' log lines and progress bars, and puts back what was set."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def model_class(config):
    """Configuration object and model class of a ``config.json`` dictionary.

    Raises:
        ValueError: no or unknown ``model_type``, or values that its configuration class refuses.
    """
    transformers = import_transformers()
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError("config.json names no model_type: not a transformers model")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(f"architecture {shown(model_type)} is unknown to transformers {transformers.__version__}")
    labels = config.get("num_labels", 0)
    if not isinstance(labels, int) or labels > MAX_LABELS:
        raise ValueError(f"config.json asks for {shown(labels)} labels")
    values = _plain(config)
    try:
        with silent(transformers):
            parsed = transformers.CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # each configuration class validates in its own way
        raise ValueError(f"config.json is not a valid {model_type} configuration: {first_line(error)}") from None
    whole = transformers.MODEL_MAPPING.get(type(parsed), None)
    whole = whole[0] if isinstance(whole, tuple) else whole
    # a part of a model that was saved alone, such as WhisperEncoder, has its class only beside that of the whole
    places = [transformers, *([sys.modules[whole.__module__]] if whole else [])]
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        for place in places if isinstance(name, str) and name.isidentifier() else ():
            cls = getattr(place, name, None)
            if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
                return parsed, cls
    if whole is None:
        raise ValueError(f"transformers {transformers.__version__} has no encoder class for {model_type!r}")
    return parsed, whole


def attention_of(model):
    """Which of ``ATTENTION`` a transformers model runs, by which its float attention rounds; None for any other."""
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return name if name in ATTENTION else None


def build_skeleton(config, *, tensors, elements, attention=None):
    """Builds the model with parameters on the meta device and real buffers, in float32 and eval mode.

    Args:
        config (dict): contents of ``config.json``.
        tensors (int): parameters in the weights file; four times as many are too many.
        elements (int): values these hold together; likewise.
        attention (str, optional): one of ``ATTENTION``; the architecture's own choice by default.

    Returns:
        nn.Module: buffers outside the state_dict (position ids, frequencies) have their values.

    Raises:
        ValueError: the configuration is invalid or describes a model beyond the bounds.
    """
    _check_counts(config, 4 * tensors)
    parsed, cls = model_class(config)
    try:
        with silent(import_transformers()):
            # sizes first, with nothing allocated; then once more for the values of the buffers
            with _bounded(tensors, elements), torch.device("meta"):
                cls._from_config(parsed, dtype=torch.float32)
            with _bounded(tensors, elements):
                return cls._from_config(parsed, dtype=torch.float32, attn_implementation=attention).eval()
    except _TooLarge as error:
        raise ValueError(f"config.json does not fit the weights file: {error}") from None
    except Exception as error:
        raise ValueError(f"config.json describes no {cls.__name__} that can be built: {first_line(error)}") from None


def check_geometry(model):
    """ValueError for a convolution or pooling with a size of 2^31 or more: kernels count in 32 bits."""
    for path, module in model.named_modules():
        sizes = [getattr(module, key, None) for key in _SIZES]
        numbers = [n for size in sizes for n in (size if isinstance(size, tuple | list) else (size,))]
        if any(isinstance(n, int) and not -LARGEST <= n <= LARGEST for n in numbers):
            raise ValueError(f"{shown(path)} has a kernel, stride, padding or dilation of 2^31 or more")


def _plain(value):
    """A configuration without the fields that are never taken from a file."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in _NOT_FROM_FILE}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _check_counts(config, most):
    """ValueError for more layers than there can be tensors: some configuration classes make a list of as many; and for
    a timm model that would be fetched from somewhere."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_counts(value, most)
        elif isinstance(value, int) and ("layers" in key or "depth" in key) and value > most:
            raise ValueError(f"config.json does not fit the weights file: {shown(key)} is {shown(value)}")
        elif key in _TIMM and isinstance(value, str) and ":" in value:
            raise ValueError(f"config.json takes {shown(value)} from elsewhere: only timm's own models are built")


class _TooLarge(Exception):
    pass


@contextmanager
def _bounded(tensors, elements):
    """Every parameter registered inside lands on the meta device, until there are too many or they are too large."""
    seen = {"tensors": 0, "elements": 0, "buffers": 0}

    def weigh(module, name, buffer):
        # tables of positions are as long as a file says; on the meta device they cost nothing yet
        seen["buffers"] += 0 if buffer is None else buffer.numel()
        if seen["buffers"] > 4 * elements + BUFFERS:
            raise _TooLarge(f"{name} of {type(module).__name__} is one of too many or too large tensors")

    def count(module, name, parameter):
        if parameter is None:
            return None
        seen["tensors"] += 1
        seen["elements"] += parameter.numel()
        # a tied parameter is registered several times, and is in the file once
        if seen["tensors"] > 4 * tensors or seen["elements"] > 4 * elements:
            raise _TooLarge(f"{name} of {type(module).__name__} is one of too many or too large tensors")
        return parameter if parameter.is_meta else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(weigh)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
