"""State of quantizers: what a float checkpoint does not have, and what a cast of the model leaves alone."""

import torch
from torch import nn


class FixedDtype(nn.Module):
    """A module whose own tensors keep their dtype when the model is cast (``.half()``, ``.bfloat16()``, ``.double()``):
    scales and thresholds are compared bit for bit, so they are fp32 always. Moves between devices work as ever.

    A ``dtype`` attribute, if there is one, names the dtype of a float tensor that was replaced; it does follow casts.
    """

    def _apply(self, fn, recurse=True):
        if isinstance(getattr(self, "dtype", None), torch.dtype):
            self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype

        def keep(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep, recurse)


class OptionalState(FixedDtype):
    """A module that keeps the state it has when a state_dict holds none of its keys: so the float checkpoint of the
    original model loads into a student, whose quantizers keep their calibration."""

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
