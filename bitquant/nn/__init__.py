"""Trainable 1-bit layers, one file each."""

from .attention import BitAttention
from .conv import BitConv
from .embedding import BitEmbedding
from .functional import BitFunctionalLinear
from .linear import BitLinear
from .product import BitEinsum, BitMatmul

__all__ = ["BitAttention", "BitConv", "BitEinsum", "BitEmbedding", "BitFunctionalLinear", "BitLinear", "BitMatmul"]
