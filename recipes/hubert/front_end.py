"""The waveform front end: 16 kHz samples to frames 20 ms apart, standard or FastConv (hubert.md 1.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .norms import TimeNorm

# (output channels, kernel, stride) of every convolution; both have stride 320 and a receptive field of 400 samples
STANDARD = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
FASTCONV = [
    (64, 10, 5), (128, 3, 2), (128, 1, 1), (128, 3, 2), (128, 1, 1), (256, 3, 2), (256, 1, 1), (256, 3, 2),
    (256, 1, 1), (512, 2, 2), (512, 1, 1), (512, 2, 2), (512, 1, 1),
]  # fmt: skip
FASTCONV_SMALL = [(channels // 4, kernel, stride) for channels, kernel, stride in FASTCONV]  # for laptops
LAYERS = {"standard": STANDARD, "fastconv": FASTCONV, "fastconv_small": FASTCONV_SMALL}
RECEPTIVE_FIELD = 400


class FrontEnd(nn.Module):
    """Convolutions without bias or padding, GELU after each, a norm over time after the first.

    Args:
        kind: ``"standard"``, ``"fastconv"`` or ``"fastconv_small"``.
        masked: the norm leaves padding out (see ``TimeNorm``).
    """

    def __init__(self, kind: str, *, masked: bool):
        super().__init__()
        inputs = [1, *(channels for channels, _, _ in LAYERS[kind])]
        self.convs = nn.ModuleList(
            nn.Conv1d(channels_in, channels, kernel, stride, bias=False)
            for channels_in, (channels, kernel, stride) in zip(inputs, LAYERS[kind], strict=False)
        )
        self.norm = TimeNorm(inputs[1], masked=masked)
        self.act = nn.GELU()
        self.channels = inputs[-1]
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """wave (B, N) samples, lengths int (B,) valid samples or None -> frames (B, T, C), valid frames int (B,).

        T is ``(N - 400) // 320 + 1``.

        Raises:
            ValueError: fewer than 400 samples, or not a batch of waveforms.
        """
        if wave.ndim != 2 or wave.shape[1] < RECEPTIVE_FIELD:
            raise ValueError(f"audio must be (batch, at least {RECEPTIVE_FIELD} samples), got {tuple(wave.shape)}")
        valid = lengths
        for index, conv in enumerate(self.convs if lengths is not None else ()):
            lengths = torch.div(lengths - conv.kernel_size[0], conv.stride[0], rounding_mode="floor") + 1
            lengths = lengths.clamp(min=0)
            valid = lengths if index == 0 else valid
        return self.frames(wave, valid if self.norm.masked else None).transpose(1, 2), lengths

    def frames(self, wave: Tensor, valid: Tensor | None = None) -> Tensor:
        """wave (B, N), int (B,) outputs of the first convolution that the norm counts, or None for all -> (B, C, T)."""
        x = wave[:, None]
        for conv, norm, act in self.conv_steps():
            x = conv(x)
            x = act(x if norm is None else norm(x, valid))
        return x

    def conv_steps(self) -> list[tuple[nn.Module, nn.Module | None, nn.Module]]:
        """(convolution, norm or None, activation), in order."""
        return [(conv, None if index else self.norm, self.act) for index, conv in enumerate(self.convs)]
