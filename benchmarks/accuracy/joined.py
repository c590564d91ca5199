"""Recordings for a model whose window is longer than they are: in training several follow each other in one window."""

import numpy as np

from bitquant.data.recordings import Recordings

PAUSE = (0.1, 0.6)  # seconds between two recordings


class JoinedRecordings(Recordings):
    """As ``Recordings``, but a training window is filled to its end with others, drawn at random, between pauses: one
    prompt of 2 seconds leaves four fifths of Whisper's window to silence, from which there is little to learn."""

    def batches(self, samples, *, batch_size, seed=None):
        self.others = samples
        return super().batches(samples, batch_size=batch_size, seed=seed)

    def _wave(self, name, rng):
        wave = super()._wave(name, rng)
        if rng is None:
            return wave
        full, parts = int(self.max_seconds * self.processor.rate), [wave]
        while sum(map(len, parts)) < full:
            pause = np.zeros(int(rng.uniform(*PAUSE) * self.processor.rate), np.float32)
            parts += [pause, super()._wave(self.others[rng.integers(len(self.others))], rng)]
        return np.concatenate(parts)[:full]
