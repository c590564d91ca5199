"""PackedEmbedding: a token table on packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from bitquant import ops, packing
from bitquant.nn.embedding import BitEmbedding
from bitquant.packed.cast import PackedTensor
from bitquant.packed.weights import dtype_name, finite, float_dtype, positive, stand_in


class PackedEmbedding(PackedTensor):
    """indices (...) int -> (..., dim) of the table's dtype: ``scale[i]`` times +-1, or times an odd level of ``bits``
    bits. The rows stay bytes, as on disk: a look-up unpacks only the rows it needs.

    ``weight_packed`` is uint8 (bits * rows, ceil(dim / 8)): one 1-bit table below the other, the lowest bit's first. A
    level is the sum of their +-1, each times its power of 2.
    """

    def __init__(
        self, rows: int, dim: int, *, bits: int = 1, dtype: str = "float32", device: torch.device | None = None
    ):
        super().__init__(float_dtype(dtype))
        if bits not in (1, 2, 4, 8):
            raise ValueError(f"a packed embedding has 1, 2, 4 or 8 bits, not {bits!r}")
        self.rows, self.dim, self.bits = rows, dim, bits
        packed = torch.zeros(bits * rows, packing.bytes_for(dim), dtype=torch.uint8, device=device)
        self.register_buffer("weight_packed", packed)
        self.register_buffer("scale", torch.ones(rows, dtype=torch.float32, device=device))

    @classmethod
    @torch.no_grad()
    def from_trained(cls, layer: BitEmbedding) -> PackedEmbedding:
        """Pack a trained ``BitEmbedding``. ValueError when a value is not finite, or a scale not positive."""
        quantizer = layer.weight_quantizer
        scale = quantizer.scale(layer.weight)
        finite("weight", layer.weight)
        positive(scale)
        shape = {"rows": layer.num_embeddings, "dim": layer.embedding_dim, "bits": quantizer.bits}
        packed = cls(**shape, dtype=dtype_name(layer.weight.dtype), device=layer.weight.device)
        codes = quantizer.codes(layer.weight)
        for bit, table in enumerate(packed.weight_packed.view(packed.bits, packed.rows, packing.bytes_for(packed.dim))):
            table.copy_(packing.pack_bits((codes >> bit & 1).bool()))
        packed.scale.copy_(scale)
        return packed

    @property
    def weight(self) -> Tensor:
        """The stand-in of the float table, which is gone."""
        return stand_in((self.rows, self.dim), self.scale.device, self.dtype, self)

    def spec(self) -> dict:
        """JSON-able arguments that build this table's skeleton."""
        return {"rows": self.rows, "dim": self.dim, "bits": self.bits, "dtype": dtype_name(self.dtype)}

    def forward(self, indices: Tensor) -> Tensor:
        return self.product(indices).to(self.dtype)

    def product(self, indices: Tensor) -> Tensor:
        """fp32 (*indices.shape, dim)."""
        return ops.embedding(indices, self.weight_packed, self.bits, self.dim, self.scale)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.dim}, bits={self.bits}"
