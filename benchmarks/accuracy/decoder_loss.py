"""A loss of what Whisper's decoder makes of an encoder: next tokens with the student's outputs and the teacher's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.accuracy.whisper import NO_TIMES, START, pretrained, transcribe
from bitquant.distillation.losses import soft_cross_entropy


def decoder_loss(weight: float) -> Callable[[Any, Any], Tensor]:
    """An ``extra_loss`` of ``bitquant.distill``: ``weight`` times the KL divergence of the next token, mean over the
    tokens that the decoder hears in the teacher's outputs (B, frames, 384). So it needs no text."""
    decoder = pretrained().requires_grad_(False)

    def divergence(student: Any, teacher: Any) -> Tensor:
        wanted, given = teacher["last_hidden_state"], student["last_hidden_state"]
        heard = transcribe(decoder, wanted)
        length = max(map(len, heard)) + 2
        ids = torch.tensor([[START, NO_TIMES, *row, *[0] * (length - 2 - len(row))] for row in heard])
        valid = torch.tensor([[0] + [1] * (len(row) + 1) + [0] * (length - 2 - len(row)) for row in heard]).bool()

        def scores(hidden: Tensor) -> Tensor:
            out = decoder(decoder_input_ids=ids, encoder_outputs=BaseModelOutput(last_hidden_state=hidden))
            return out.logits[valid]

        return weight * soft_cross_entropy(scores(given), scores(wanted), None)

    return divergence
