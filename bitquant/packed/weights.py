"""What packed layers share: a weight that exists only as bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquant import packing


def positive(scale: Tensor) -> None:
    """ValueError unless every scale is positive and finite (DESIGN contract 3)."""
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError("a scale is not positive and finite: training diverged, so this layer cannot be packed")


class PackedWeight(nn.Module):
    """Bits of a weight (rows, columns). In memory once, as ``lanes`` (the form the kernels read); in a state_dict as
    ``weight_packed``, uint8 (rows, ceil(columns / 8))."""

    def __init__(self, rows: int, columns: int, *, device: torch.device | None = None):
        super().__init__()
        self.rows, self.columns = rows, columns
        shape = (-(-rows // packing.LANES), packing.words_for(columns), packing.LANES)
        self.register_buffer("lanes", torch.zeros(shape, dtype=torch.int32, device=device), persistent=False)

    def pack(self, bits: Tensor) -> None:
        """bits bool (rows, columns)."""
        self.lanes = packing.to_lanes(packing.to_words(packing.pack_bits(bits), self.columns))

    def packed(self) -> Tensor:
        """uint8 (rows, ceil(columns / 8))."""
        return packing.to_bytes(packing.from_lanes(self.lanes, self.rows), self.columns)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.lanes.is_meta:
            shape = (self.rows, packing.bytes_for(self.columns))
            destination[prefix + "weight_packed"] = torch.empty(shape, dtype=torch.uint8, device="meta")
        else:
            destination[prefix + "weight_packed"] = self.packed()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        key = prefix + "weight_packed"
        packed = state_dict.get(key)
        others = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, unexpected, errors)
        if packed is None:
            missing.append(key)
            return
        shape = (self.rows, packing.bytes_for(self.columns))
        if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
            errors.append(f"{key} must be uint8 {shape}, got {packed.dtype} {tuple(packed.shape)}")
            return
        try:
            self.lanes = packing.to_lanes(packing.to_words(packed, self.columns))
        except ValueError as error:
            errors.append(f"{key}: {error}")
