"""From a transformers ``config.json`` to a model without weights, within bounds taken from the weights file.

A configuration is untrusted: one that asks for a billion layers or a terabyte matrix is refused while it is being
built on the meta device, before anything of that size exists.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

MAX_LABELS = 1_000_000
ATTENTION = ("eager", "sdpa")  # attention in plain torch, the only ones that are loaded again
# never taken from a file: they would pick code, kernels or another quantizer to load with
_NOT_FROM_FILE = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "custom_pipelines")


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
        raise ValueError(f"architecture {model_type!r} is unknown to transformers {transformers.__version__}")
    labels = config.get("num_labels", 0)
    if not isinstance(labels, int) or labels > MAX_LABELS:
        raise ValueError(f"config.json asks for {labels} labels")
    values = {k: v for k, v in config.items() if k not in _NOT_FROM_FILE}
    try:
        with silent(transformers):
            parsed = transformers.CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # each configuration class validates in its own way
        raise ValueError(f"config.json is not a valid {model_type} configuration: {_first_line(error)}") from None
    for name in config.get("architectures") or ():
        cls = getattr(transformers, str(name), None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return parsed, cls
    if type(parsed) not in transformers.MODEL_MAPPING:
        raise ValueError(f"transformers {transformers.__version__} has no encoder class for {model_type!r}")
    cls = transformers.MODEL_MAPPING[type(parsed)]
    return parsed, cls[0] if isinstance(cls, tuple) else cls


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
        raise ValueError(f"config.json describes no {cls.__name__} that can be built: {_first_line(error)}") from None


class _TooLarge(Exception):
    pass


@contextmanager
def _bounded(tensors, elements):
    """Every parameter registered inside lands on the meta device, until there are too many or they are too large."""
    seen = {"tensors": 0, "elements": 0}

    def count(module, name, parameter):
        if parameter is None:
            return None
        seen["tensors"] += 1
        seen["elements"] += parameter.numel()
        # a tied parameter is registered several times, and is in the file once
        if seen["tensors"] > 4 * tensors or seen["elements"] > 4 * elements:
            raise _TooLarge(f"{name} of {type(module).__name__} is one of too many or too large tensors")
        return parameter if parameter.is_meta else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
