"""The HuBERT trunk: waveform front end, position embedding, encoder (hubert.md 1.1)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import HubertConfig, load_config
from .encoders import build_encoder
from .front_end import FrontEnd
from .norms import LayerNorm
from .positions import PositionalConv


class HubertOutput(NamedTuple):
    """
    Args:
        last_hidden_state: (B, T, D), zero at padded frames.
        hidden_states: the encoder's input and every layer's output, (B, T, D) each, at 20 ms a frame.
        valid: bool (B, T), False for padded frames; None without a mask.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    valid: Tensor | None


class Hubert(nn.Module):
    """16 kHz waveforms (B, N) -> ``HubertOutput`` with T = (N - 400) // 320 + 1 frames.

    With ``groupnorm = "masked"`` padding changes nothing: an utterance has the same features alone and in any batch.
    """

    def __init__(self, config: HubertConfig):
        super().__init__()
        self.config, dim = config, config.dim
        self.front_end = FrontEnd(config.front_end, masked=config.groupnorm == "masked")
        channels = self.front_end.channels
        self.feature_norm = LayerNorm(channels)
        self.feature_proj = nn.Linear(channels, dim) if channels != dim else nn.Identity()
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.rand(dim))
        self.positional = PositionalConv(dim) if config.positional_conv else None
        self.norm = LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = build_encoder(**config.encoder)

    @classmethod
    def from_preset(cls, name: str | Path, **overrides) -> Hubert:
        """A randomly initialised model of a preset (or a TOML file) with some fields of its configuration replaced."""
        return cls(load_config(name, **overrides))

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None,
                mask: Tensor | None = None) -> HubertOutput:
        """
        Args:
            input_values: float (B, N), samples at 16 kHz.
            attention_mask: bool or int (B, N), 1 for samples, 0 for padding behind them.
            mask: bool (B, T), frames to replace by the mask embedding (see ``masking.span_mask``).

        Raises:
            ValueError: fewer than 400 samples, or a mask of another shape.
        """
        features, valid = self.extract(input_values, attention_mask)
        return self.encode(features, valid, mask)

    def extract(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Front-end features (B, T, C) and valid frames, bool (B, T) or None."""
        if attention_mask is None:
            return self.front_end(input_values)
        if attention_mask.shape != input_values.shape:
            shapes = f"{tuple(attention_mask.shape)} and {tuple(input_values.shape)}"
            raise ValueError(f"attention_mask must have one value a sample; shapes are {shapes}")
        features, lengths = self.front_end(input_values, attention_mask.long().sum(1))
        return features, torch.arange(features.shape[1], device=features.device) < lengths[:, None]

    def encode(self, features: Tensor, valid: Tensor | None = None, mask: Tensor | None = None) -> HubertOutput:
        """Features (B, T, C) of ``extract`` -> output."""
        x = self.input_dropout(self.feature_proj(self.feature_norm(features)))
        frames = x.shape[1]
        if mask is not None:
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask must be {tuple(x.shape[:2])}, one value a frame; got {tuple(mask.shape)}")
            x = torch.where(mask[..., None], self.mask_embedding.to(x.dtype), x)
        x, inside = self._pad(x, valid)
        if inside is not None:
            x = x.masked_fill(~inside[..., None], 0.0)
        if self.positional is not None:
            x = x + self.positional(x)
        states = self.encoder(self.dropout(self.norm(x)), inside)
        states = [state[:, :frames] for state in states]
        if valid is not None:
            states[-1] = states[-1].masked_fill(~valid[..., None], 0.0)
        return HubertOutput(states[-1], tuple(states), valid)

    def _pad(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames behind the end up to the multiple that the configuration asks for."""
        extra = -x.shape[1] % self.config.sequence_multiple
        if extra == 0:
            return x, valid
        if valid is None:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return F.pad(x, (0, 0, 0, extra)), F.pad(valid, (0, extra))
