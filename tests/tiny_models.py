"""Small models as a user's package would bring them: ``tiny_models:Frames`` and its kind on the command line."""

import torch
from torch import nn


class Frames(nn.Module):
    """Waveform (B, T) at 8 kHz -> logits (B, T / 160, 7)."""

    sampling_rate = 8000

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(1, 32, 400, 160)
        layers = (nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True) for _ in range(2))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(32, 7)

    def forward(self, waveform):
        x = self.stem(waveform[:, None]).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return {"logits": self.head(x)}


class Tied(nn.Module):
    """Two names for one matrix."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def mlp():
    """Rows (B, 16) -> (B, 8)."""
    parts = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    return Rows(parts)


class Rows(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, features, offset=None):
        return self.layers(features if offset is None else features + offset)


def not_a_model():
    return torch.zeros(3)


def broken():
    raise RuntimeError("the factory's own trouble")
