"""``optimize_``: what runs around and between the packed layers of a model, faster on a CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from bitquant.nn import BitConv
from bitquant.processor import bfloat16_is_fast

from . import depthwise, extractor, grouped
from .handover import hand_on_bits_

MODES = {"exact": torch.float32, "fast": torch.bfloat16}


class Optimized(NamedTuple):
    """One module that ``optimize_`` looked at. ``reason``: why it was left as it was, or None."""

    path: str
    what: str
    reason: str | None


def optimize_(model: nn.Module, mode: str = "exact", example_inputs: Any = None) -> list[Optimized]:
    """Run the float waveform extractor and the grouped and depthwise 1-d convolutions of a model in a faster form, in
    place; and hand on bits between 1-bit linear layers of a packed one.

    Parameters, buffers and the state_dict stay as they are; changed weights are noticed. The fast form runs on fp32
    input on the CPU, in eval mode and without gradients (``torch.inference_mode``, or no parameter that asks for one);
    any other call runs the module's own forward. Hooks on the layers inside an extractor then see nothing. Works on
    float, student and packed models, of transformers and of ``recipes.hubert``.

    Args:
        mode: ``"exact"``: the same fp32 arithmetic, summed in another order, and the norm over time taken into the
            first weight; outputs agree to rounding (about 1e-6 of the largest), not bit for bit, so a sign at a
            binarizer's threshold may flip: optimize both models where two are to be equal. ``"fast"``: products in
            bfloat16, but for depthwise ones.
        example_inputs: a tensor, a tuple or a dict that the model, in eval mode, is run on to see what reads the
            outputs of packed linear layers. Where only 1-bit linear layers do, directly or behind a ReLU, the floats
            are not computed; results stay equal bit for bit. An output that is read after all, in another call, is
            computed there. None: leave these layers as they are.

    Returns:
        Every such module found, and why one was left; every linear layer that hands on bits.

    Raises:
        ValueError: another mode, or ``"fast"`` on a processor without bfloat16 instructions.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if mode == "fast" and not bfloat16_is_fast():
        raise ValueError(
            "mode 'fast' multiplies in bfloat16, which this processor has no instructions for; use 'exact'"
        )
    rows, inside = [], set()
    for path, module in model.named_modules():
        if extractor.steps_of(module) is not None:
            rows.append(_replace(extractor, path, "waveform extractor", module, MODES[mode]))
            inside.update(module.modules())
        elif module in inside or not isinstance(module, nn.Conv1d) or isinstance(module, BitConv) or module.groups == 1:
            continue
        elif module.groups < module.in_channels:
            rows.append(_replace(grouped, path, "grouped convolution", module, MODES[mode]))
        else:
            rows.append(_replace(depthwise, path, "depthwise convolution", module, MODES[mode]))
    if example_inputs is not None:
        what = "linear layer that hands on bits"
        rows += [Optimized(path, what, None) for path in hand_on_bits_(model, example_inputs)]
    return rows


def _replace(kind, path: str, what: str, module: nn.Module, dtype: torch.dtype) -> Optimized:
    reason = kind.unsupported(module)
    if reason is None:
        try:
            kind.replace_(module, dtype)
        except ValueError as error:
            reason = str(error)
    return Optimized(path, what, reason)
