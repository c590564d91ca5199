"""What a layer of a pre-trained model says of each frame, at 50 Hz (hubert.md 1.5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.frames import STRIDE, frames_of, samples_of
from ..saved import load_pretrained

CHUNK = 5000  # frames a pass: 100 s


class LayerFeatures:
    """Waveform float32 (N,) at 16 kHz -> float32 (frames, D): the output of a layer, nothing masked, nothing dropped.

    Args:
        model: directory of a pre-trained model.
        layer: 1 for the first layer; 0 is the encoder's input.
        device: where it runs.

    Raises:
        ValueError: no such layer.
    """

    label_rate, on_workers = 50, False
    frames = staticmethod(frames_of)

    def __init__(self, model: str | Path, layer: int, *, device: str = "cpu"):
        self.trunk = load_pretrained(model).hubert.eval().to(device)
        layers = len(self.trunk.encoder.layers)
        if not 0 <= layer <= layers:
            raise ValueError(f"the model in {model} has layers 1 to {layers}, not {layer}")
        self.layer, self.device, self.dims = layer, device, self.trunk.config.dim
        self.name = f"layer-{layer}"

    @torch.no_grad()
    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """A chunk begins where the frames of the one before end, so that none is lost between them."""
        found, frames = [], frames_of(len(wave))
        for first in range(0, frames, CHUNK):
            begin, count = first * STRIDE, min(CHUNK, frames - first)
            chunk = torch.from_numpy(wave[begin : begin + samples_of(count)])
            states = self.trunk(chunk[None].to(self.device)).hidden_states
            found.append(states[self.layer][0].float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, self.dims), np.float32)
