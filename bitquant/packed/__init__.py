"""Inference layers on packed buffers, one file each, and the structure that rebuilds them from a checkpoint."""

from .attention import PackedAttention
from .conv import PackedConv
from .embedding import PackedEmbedding
from .functional import PackedFunctionalLinear
from .linear import PackedLinear
from .structure import restore_, structure

__all__ = [
    "PackedAttention",
    "PackedConv",
    "PackedEmbedding",
    "PackedFunctionalLinear",
    "PackedLinear",
    "restore_",
    "structure",
]
