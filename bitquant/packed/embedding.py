"""PackedEmbedding: a token table on packed rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bitquant import ops, packing
from bitquant.nn.embedding import BitEmbedding
from bitquant.packed.weights import dtype_name, float_dtype, positive, stand_in
from bitquant.quantizers import FixedDtype


class PackedEmbedding(FixedDtype):
    """indices (...) int -> (..., dim) of the table's dtype: ``scale[i]`` times +-1, or times an odd level of ``bits``
    bits. The rows stay bytes, as on disk: a look-up unpacks only the rows it needs.

    ``weight_packed`` is uint8 (bits * rows, ceil(dim / 8)): one 1-bit table below the other, the lowest bit's first. A
    level is the sum of their +-1, each times its power of 2.
    """

    def __init__(
        self, rows: int, dim: int, *, bits: int = 1, dtype: str = "float32", device: torch.device | None = None
    ):
        super().__init__()
        if bits not in (1, 2, 4, 8):
            raise ValueError(f"a packed embedding has 1, 2, 4 or 8 bits, not {bits!r}")
        self.rows, self.dim, self.bits, self.dtype = rows, dim, bits, float_dtype(dtype)
        packed = torch.zeros(bits * rows, packing.bytes_for(dim), dtype=torch.uint8, device=device)
        self.register_buffer("weight_packed", packed)
        self.register_buffer("scale", torch.ones(rows, device=device))

    @classmethod
    @torch.no_grad()
    def from_trained(cls, layer: BitEmbedding) -> PackedEmbedding:
        """Pack a trained ``BitEmbedding``. ValueError when a scale is not positive and finite."""
        quantizer = layer.weight_quantizer
        scale = quantizer.scale(layer.weight)
        positive(scale)
        shape = {"rows": layer.num_embeddings, "dim": layer.embedding_dim, "bits": quantizer.bits}
        packed = cls(**shape, dtype=dtype_name(layer.weight.dtype), device=layer.weight.device)
        codes = quantizer.codes(layer.weight)
        for place, plane in enumerate(packed.planes()):
            plane.copy_(packing.pack_bits((codes >> place & 1).bool()))
        packed.scale.copy_(scale)
        return packed

    @property
    def weight(self) -> Tensor:
        """The stand-in of the float table, which is gone."""
        return stand_in((self.rows, self.dim), self.scale.device, self.dtype, self)

    def planes(self) -> tuple[Tensor, ...]:
        """Views of ``weight_packed``, uint8 (rows, ceil(dim / 8)) for each bit, the lowest first."""
        return self.weight_packed.split(self.rows)

    def spec(self) -> dict:
        """JSON-able arguments that build this table's skeleton."""
        return {"rows": self.rows, "dim": self.dim, "bits": self.bits, "dtype": dtype_name(self.dtype)}

    def forward(self, indices: Tensor) -> Tensor:
        return self.product(indices).to(self.dtype)

    def product(self, indices: Tensor) -> Tensor:
        """fp32 (*indices.shape, dim)."""
        if self.bits == 1:
            return self.look_up(indices, self.weight_packed, self.scale)
        unit = torch.ones_like(self.scale)
        lowest, *others = self.planes()
        levels = self.look_up(indices, lowest, unit)
        for place, plane in enumerate(others, start=1):
            levels = levels + 2**place * self.look_up(indices, plane, unit)
        return levels * F.embedding(indices, self.scale.unsqueeze(-1))

    def look_up(self, indices: Tensor, plane: Tensor, scale: Tensor) -> Tensor:
        """fp32 (*indices.shape, dim): rows of one 1-bit table."""
        return ops.binary_embedding(indices, plane, self.dim, scale)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.dim}, bits={self.bits}"
