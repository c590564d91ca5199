"""The quantizer of one input as a node sees it: tensors, attributes, and the levels it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class NodeQuantizer:
    """
    Args:
        kind: ``"Binary"`` or ``"Integer"``. vectors: gives the tensors that follow x in the function's inputs.
        settings: attributes of the node. bits, signed: as in the packed layers.
        channels: dimension of x that the vectors run along.
    """

    kind: str
    vectors: Callable[[], list[Tensor]]
    settings: dict[str, int] = field(default_factory=dict)
    channels: int = -1

    def levels(self, x: Tensor) -> Tensor:
        """Integers of x, any shape: what the nodes multiply, in their storage."""
        x = x.movedim(self.channels, -1)
        if self.kind == "Binary":
            return x >= self.vectors()[0]
        shift, step = self.vectors()
        return (torch.round((x + shift) / step) + self.settings["zero_point"]).clamp(0, self.settings["top"])


def quantizer(
    layer: nn.Module, bits: int, signed: bool, offset: Tensor, step: Tensor | None, prefix: str = ""
) -> NodeQuantizer:
    """The quantizer of an input of ``layer``, whose tensors become buffers of it, named with ``prefix``.

    Args:
        offset: fp32 [channels] or [1], the threshold of a 1-bit input, the shift of a wider one. step: fp32 [1].

    Raises:
        ValueError: a width other than 1, 2, 4 and 8.
    """
    if bits == 1:
        # x > t is x >= the next number above t
        threshold = offset if signed else torch.nextafter(offset, torch.full_like(offset, torch.inf))
        layer.register_buffer(f"{prefix}threshold", threshold.clone())
        name = f"{prefix}threshold"
        return NodeQuantizer("Binary", lambda: [getattr(layer, name)], {"zero_point": int(signed)})
    if bits not in (2, 4, 8):
        raise ValueError(f"its input has {bits} bits; a file holds inputs of 1, 2, 4 or 8")
    layer.register_buffer(f"{prefix}shift", offset.clone())
    layer.register_buffer(f"{prefix}unit", step.clone().reshape(1))
    names = f"{prefix}shift", f"{prefix}unit"
    settings = {"zero_point": 2 ** (bits - 1) if signed else 0, "top": 2**bits - 1}
    return NodeQuantizer("Integer", lambda: [getattr(layer, name) for name in names], settings)
