"""PackedEmbedding: a token table on packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant import ops, packing
from bitquant.nn.embedding import BitEmbedding
from bitquant.packed.weights import dtype_name, float_dtype, positive, stand_in
from bitquant.quantizers import FixedDtype


class PackedEmbedding(FixedDtype):
    """indices (...) int -> (..., dim) of the table's dtype: ``scale[i] * (+-1)``. The rows stay bytes, as on
    disk: a look-up unpacks only the rows it needs."""

    def __init__(self, rows: int, dim: int, *, dtype: str = "float32", device: torch.device | None = None):
        super().__init__()
        self.rows, self.dim, self.dtype = rows, dim, float_dtype(dtype)
        packed = torch.zeros(rows, packing.bytes_for(dim), dtype=torch.uint8, device=device)
        self.register_buffer("weight_packed", packed)
        self.register_buffer("scale", torch.ones(rows, device=device))

    @classmethod
    @torch.no_grad()
    def from_trained(cls, layer: BitEmbedding) -> PackedEmbedding:
        """Pack a trained ``BitEmbedding``. ValueError when a scale is not positive and finite."""
        scale = layer.weight_quantizer.scale(layer.weight)
        positive(scale)
        dtype = dtype_name(layer.weight.dtype)
        packed = cls(layer.num_embeddings, layer.embedding_dim, dtype=dtype, device=layer.weight.device)
        packed.weight_packed.copy_(packing.pack_bits(layer.weight_quantizer.signs(layer.weight)))
        packed.scale.copy_(scale)
        return packed

    @property
    def weight(self) -> Tensor:
        """The stand-in of the float table, which is gone."""
        return stand_in((self.rows, self.dim), self.scale.device, self.dtype, self)

    def spec(self) -> dict:
        """JSON-able arguments that build this table's skeleton."""
        return {"rows": self.rows, "dim": self.dim, "dtype": dtype_name(self.dtype)}

    def forward(self, indices: Tensor) -> Tensor:
        return self.product(indices).to(self.dtype)

    def product(self, indices: Tensor) -> Tensor:
        """fp32 (*indices.shape, dim)."""
        return ops.binary_embedding(indices, self.weight_packed, self.dim, self.scale)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.dim}"
