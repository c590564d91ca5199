"""Inputs of a given length for a model whose kind of input is known by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

SAMPLE_RATE = 16_000


def inputs_for(model: nn.Module, *, seconds: float, tokens: int) -> dict[str, Any]:
    """Keyword arguments for one sequence: ``seconds`` of noise at 16 kHz for a model of waveforms (``input_values``),
    ``tokens`` random ids for one of text (``input_ids``).

    Raises:
        ValueError: another kind of input, or more tokens than the model has positions.
    """
    names = list(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(0)
    if "input_values" in names:
        return {"input_values": 0.1 * torch.randn(1, round(seconds * SAMPLE_RATE), generator=generator)}
    if "input_ids" in names:
        config = model.config
        longest = getattr(config, "max_position_embeddings", None)
        if longest is not None and tokens > longest:
            raise ValueError(f"the model has {longest} positions: {tokens} tokens are too many")
        ids = torch.randint(config.vocab_size, (1, tokens), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    first = names[0] if names else "nothing"
    raise ValueError(f"inputs are made for models of input_values or input_ids, not {first}: use the library instead")
