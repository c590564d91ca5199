"""Running a model on its example inputs without leaving a trace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from .errors import CaptureError
from .ordinary import ordinary
from .purity import Attributes, restored

LONGEST = 300  # characters of another's error that are passed on


def bind(example_inputs) -> tuple[tuple, dict]:
    """Positional and keyword arguments from a tensor, a tuple (or list) or a mapping.

    Raises:
        CaptureError: where `example_inputs` is none of these.
    """
    if example_inputs is None:
        raise CaptureError("example_inputs are missing: pass a tensor, a tuple of arguments or a dict of keywords")
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    kind = type(example_inputs).__name__
    raise CaptureError(f"example_inputs must be a tensor, a tuple or a dict, not {kind}")


def run(model: nn.Module, example_inputs):
    """Run the model in eval mode without gradients; modes, attributes, buffers and random state are restored.

    Raises:
        CaptureError: where the model does not run on `example_inputs`.
    """
    args, kwargs = bind(ordinary(example_inputs))
    attributes = [Attributes(module) for module in model.modules() if not isinstance(module, LazyModuleMixin)]
    try:
        model.eval()
        # in inference mode, tensors would count no changes in place
        with torch.inference_mode(False), torch.no_grad(), restored(model.buffers()):
            return model(*args, **kwargs)
    except CaptureError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        said = said if len(said) <= LONGEST else said[:LONGEST] + " ..."
        raise CaptureError(f"the model does not run on example_inputs: {type(error).__name__}: {said}") from error
    finally:
        for saved in attributes:
            saved.restore()
