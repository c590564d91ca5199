"""The pre-training head: frames against class embeddings by cosine (hubert.md 1.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1


class HubertHead(nn.Module):
    """One projection for all label sets; ``logits = cos(projected frame, class embedding) / 0.1`` in fp32.

    Args:
        dim: of the encoder. final_dim: of the common space. classes: number of classes of each label set.
    """

    def __init__(self, dim: int, final_dim: int, classes: tuple[int, ...]):
        super().__init__()
        self.final_proj = nn.Linear(dim, final_dim * len(classes))
        self.label_embeddings = nn.ParameterList(nn.Parameter(torch.rand(count, final_dim)) for count in classes)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """(..., D) -> logits (..., classes) fp32, one tensor a label set."""
        parts = self.final_proj(frames).chunk(len(self.label_embeddings), dim=-1)
        return [
            F.normalize(part.float(), dim=-1) @ F.normalize(embeddings.float(), dim=-1).T / TEMPERATURE
            for part, embeddings in zip(parts, self.label_embeddings, strict=True)
        ]
