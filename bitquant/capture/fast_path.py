"""Torch's fused encoder layers, which read the weights of the layers inside themselves."""

from __future__ import annotations

import torch
from torch import nn


def leave_fast_path_(model: nn.Module) -> None:
    """Have torch's encoder layers call the layers inside, in place: the fused form, of eval mode, would multiply by
    float weights, also where a user switches it on again (``torch.backends.mha``). Off for the process, attention that
    stays float rounds alike in the student and where it is loaded."""
    torch.backends.mha.set_fastpath_enabled(False)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # neither of the two that the fused form has
