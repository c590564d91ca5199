"""Small checkpoints to damage: each with what to load it with and what to call it with."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitquant


class Plain(nn.Module):
    """Tokens (B, T) -> (B, T / 2, 4), through a layer of each kind that a checkpoint can describe."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.conv = nn.Conv1d(16, 16, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, ids):
        x = self.conv(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Layer(nn.Module):
    """Attention with a projection that is a parameter, a convolution and a feed-forward network."""

    def __init__(self):
        super().__init__()
        self.project = nn.Parameter(torch.randn(48, 16) / 4)
        self.conv = nn.Conv1d(16, 16, 3, padding=1, groups=2)
        self.up, self.act, self.down = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        q, k, v = nn.functional.linear(x, self.project).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(x + self.down(self.act(self.up(x))))


@dataclass
class Subject:
    """A saved checkpoint.

    Args:
        config: contents of ``config.json``. weights: bytes of the weights file.
        model: what ``load`` needs beside the directory, or None. inputs: keyword arguments of a call.
        expected: what that call gives.
    """

    name: str
    config: dict[str, Any]
    weights: bytes
    model: nn.Module | None
    inputs: dict[str, Any]
    expected: torch.Tensor


def answer(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """The first output of one call."""
    with torch.no_grad():
        out = model(**inputs)
    return out if isinstance(out, torch.Tensor) else out[0]


def _plain():
    return Plain().eval(), {"ids": torch.arange(16).view(2, 8) % 12}


def _bert():
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=12, max_position_embeddings=10, **sizes)
    ids = torch.arange(16).view(2, 8) % 12
    return transformers.BertModel(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def subjects(directory: Path) -> list[Subject]:
    """Packed models and students of both presets, saved below ``directory``."""
    torch.manual_seed(0)
    wide = {"rules": {"re:layers.0.*": {"activation_bits": 4}}, "low_rank": 2, "embedding_bits": 4}
    kinds = [
        ("plain-packed", _plain, bitquant.QuantConfig.preset("bit-plus", depthwise="binary"), True),
        ("plain-mixed", _plain, bitquant.QuantConfig.preset("bit-ref", **wide), True),
        ("plain-student", _plain, bitquant.QuantConfig.preset("bit-plus", **wide), False),
        ("bert-packed", _bert, bitquant.QuantConfig.preset("bit-plus"), True),
        ("bert-student", _bert, bitquant.QuantConfig.preset("bit-ref"), False),
    ]
    return [_saved(directory / name, *rest) for name, *rest in kinds]


def _saved(directory, make, config, packed):
    model, inputs = make()
    given = None if make is _bert else copy.deepcopy(model)
    bitquant.quantize_(model, config, inputs)
    if packed:
        bitquant.convert_(model)
    bitquant.save(model.eval(), directory)
    content = json.loads((directory / "config.json").read_text())
    weights = (directory / "bitquant.safetensors").read_bytes()
    return Subject(directory.name, content, weights, given, inputs, answer(model, inputs))
