"""MFCC-39 as in Kaldi: 13 coefficients, their first and their second differences, at 100 Hz (hubert.md 1.5)."""

from __future__ import annotations

import numpy as np

from ..data.manifest import RATE

WINDOW, SHIFT = 400, 160  # samples: 25 and 10 ms
_REACH = 2  # frames on either side, of a difference


class Mfcc:
    """Waveform float32 (N,) at 16 kHz, full scale 1 -> float32 (frames, 39).

    13 cepstra of 23 mel bands, no energy term, no dither, edges snipped; a difference is the slope of a regression over
    5 frames, with the first and last frame repeated.
    """

    name, label_rate, dims, on_workers = "mfcc", 100, 39, True

    def __init__(self):
        try:
            import kaldi_native_fbank
        except ModuleNotFoundError:
            raise ModuleNotFoundError("MFCC needs an extra: pip install 'bitquant-torch[recipes]'") from None
        self._library = kaldi_native_fbank
        self._options = kaldi_native_fbank.MfccOptions()
        self._options.frame_opts.samp_freq = RATE
        self._options.frame_opts.dither = 0.0
        self._options.use_energy = False

    @staticmethod
    def frames(samples: int) -> int:
        """How many frames a recording has."""
        return max(0, (samples - WINDOW) // SHIFT + 1)

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        front_end = self._library.OnlineMfcc(self._options)
        front_end.accept_waveform(RATE, wave)
        front_end.input_finished()
        frames = range(front_end.num_frames_ready)
        cepstra = np.array([front_end.get_frame(i) for i in frames], dtype=np.float32).reshape(len(frames), 13)
        first = differences(cepstra)
        return np.concatenate([cepstra, first, differences(first)], axis=1)


def differences(features: np.ndarray) -> np.ndarray:
    """Slope over 5 frames: ``sum_n n (x[t + n] - x[t - n]) / (2 sum_n n^2)``, n = 1, 2. (frames, dims), same shape."""
    if not len(features):
        return features
    padded = np.pad(features, ((_REACH, _REACH), (0, 0)), mode="edge")
    count, total = len(features), np.zeros_like(features)
    for n in range(1, _REACH + 1):
        total += n * (padded[_REACH + n : _REACH + n + count] - padded[_REACH - n : _REACH - n + count])
    return total / (2 * sum(n * n for n in range(1, _REACH + 1)))
