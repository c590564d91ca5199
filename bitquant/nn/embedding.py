"""BitEmbedding: a trainable token table with rows of 1 bit, or a few, each with its own scale."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bitquant.config import QuantConfig
from bitquant.nn.weights import QuantizedWeight
from bitquant.quantizers import FLOAT_BITS
from bitquant.quantizers.weight import WeightLevels, odd_levels, weight_mean


class BitEmbedding(QuantizedWeight):
    """Mixed into ``nn.Embedding`` in place: row ``i`` becomes ``s_i * levels(W_i)`` (bit.md section 3).

    indices (...) int -> (..., embedding_dim) of the table's dtype.
    """

    def add_quantizers(self, config: QuantConfig) -> None:
        """Called once after the class was mixed in. Scales are per row whatever the configuration says for linears."""
        self.add_weight_quantizer(config, "row", config.table_bits)

    def set_bits(self, config: QuantConfig) -> None:
        """Change the width in place to the configuration's."""
        self.weight_quantizer.bits = config.table_bits

    def spec(self) -> dict:
        """JSON-able arguments of ``add_quantizers``: none."""
        return {}

    def forward(self, indices: Tensor) -> Tensor:
        quantizer, scale = self.weight_quantizer, self.weight_quantizer.scale(self.weight)
        if quantizer.bits == FLOAT_BITS:
            return F.embedding(indices, self.weight, self.padding_idx)
        rows = F.embedding(indices, self.weight, self.padding_idx).float()
        row_scale = F.embedding(indices, scale.unsqueeze(1))
        return (self._levels(indices, rows, row_scale) * row_scale).to(self.weight.dtype)

    def _levels(self, indices: Tensor, rows: Tensor, row_scale: Tensor) -> Tensor:
        quantizer = self.weight_quantizer
        if quantizer.bits > 1:
            return odd_levels(rows, row_scale, quantizer.bits)
        mean = weight_mean(self.weight.detach(), quantizer.center)  # of the whole table, as it is packed
        row_mean = F.embedding(indices, mean) if quantizer.center == "row" else mean
        return WeightLevels.apply(rows, row_mean, row_scale.detach())
