"""Speech for training where recordings are few and short: several of them, at other speeds, follow each other."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bitquant.data.kind import files_below
from bitquant.data.recordings import Recordings

PAUSE = (0.1, 0.6)  # seconds between two recordings
SPEED = (0.9, 1.1)


class JoinedRecordings(Recordings):
    """As ``Recordings``, but a training sample is filled to ``max_seconds`` with others, drawn at random, after pauses.

    Every recording is played at a speed of its own, so that none comes twice. A prompt of 2 seconds alone would leave
    four fifths of Whisper's window to silence, from which there is little to learn.
    """

    more: tuple[list[str], ...] = ()  # recordings of other folders, which no sample begins with

    def fill_with(self, folders: Iterable[Path]) -> None:
        """Draws what fills a sample from other folders too, from each as often as from the samples themselves.

        ValueError: a folder holds nothing that can be used.
        """
        more = []
        for folder in folders:
            kept, _ = self.usable([str(file.resolve()) for file in files_below(folder, self.suffixes)])
            if not kept:
                raise ValueError(f"{folder} holds no recording that can be used: {', '.join(self.suffixes)} are read")
            more.append(kept)
        self.more = tuple(more)

    def batches(self, samples, *, batch_size, seed=None):
        if seed is not None:  # one pass over others, held out ones, may come between
            self.others = samples
        return super().batches(samples, batch_size=batch_size, seed=seed)

    def _wave(self, name, rng):
        wave = super()._wave(name, rng)
        if rng is None:
            return wave
        full, parts = int(self.max_seconds * self.processor.rate), [_played(wave, rng)]
        folders = [self.others, *self.more]
        while sum(map(len, parts)) < full:
            pause = np.zeros(int(rng.uniform(*PAUSE) * self.processor.rate), np.float32)
            folder = folders[rng.integers(len(folders))]  # a single one takes nothing from the generator
            other = super()._wave(folder[rng.integers(len(folder))], rng)
            parts += [pause, _played(other, rng)]
        return np.concatenate(parts)[:full]


def _played(wave, rng):
    """The waveform, float32 (T,), at a random speed."""
    at = np.arange(0, len(wave) - 1, rng.uniform(*SPEED))
    return np.interp(at, np.arange(len(wave)), wave).astype(np.float32)
