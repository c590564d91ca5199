"""Speech for training where recordings are few and short: several of them, at other speeds, follow each other."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bitquant.data.kind import files_below
from bitquant.data.recordings import Recordings

PAUSE = (0.1, 0.6)  # seconds between two recordings
SPEED = (0.9, 1.1)

# of a remixed sample
CUT = 0.5  # chance that a recording is cut, inside words too
KEPT = (0.3, 1.0)  # share that a cut leaves
REMIXED_SPEED = (0.8, 1.25)
GAIN = (-6.0, 6.0)  # dB, of each recording
OVERLAY = 0.5  # chance of a second track
OVERLAY_GAIN = (-25.0, -5.0)  # dB
NOISE = 0.3  # chance of white noise
NOISE_LEVEL = (-40.0, -15.0)  # dB, to the mean power of the sample


class JoinedRecordings(Recordings):
    """As ``Recordings``, but a training sample is filled to ``max_seconds`` with others, drawn at random, after pauses.

    Every recording is played at a speed of its own, so that none comes twice. A prompt of 2 seconds alone would leave
    four fifths of Whisper's window to silence, from which there is little to learn.

    ``remix`` makes samples differ more: recordings are cut anywhere, played faster, slower, louder and softer, and laid
    over others and noise. What the teacher says of such a sample is as true as of any other.
    """

    remix = False
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
        if rng is None:
            return super()._wave(name, rng)
        track = self._track(name, rng)
        if self.remix:
            if rng.random() < OVERLAY:
                over = self._track(self._drawn(rng), rng)
                track = track + _gain(rng, OVERLAY_GAIN) * over
            if rng.random() < NOISE:
                level = _gain(rng, NOISE_LEVEL) * np.sqrt(np.mean(track**2))
                track = track + level * rng.standard_normal(len(track), np.float32)
        return track.astype(np.float32)

    def _track(self, name, rng):
        """A recording and what follows it, float32 (samples of ``max_seconds``,)."""
        full, parts = int(self.max_seconds * self.processor.rate), [self._played(name, rng)]
        while sum(map(len, parts)) < full:
            pause = np.zeros(int(rng.uniform(*PAUSE) * self.processor.rate), np.float32)
            parts += [pause, self._played(self._drawn(rng), rng)]
        return np.concatenate(parts)[:full]

    def _drawn(self, rng):
        """The name of any recording that may fill a sample."""
        folders = [self.others, *self.more]
        folder = folders[rng.integers(len(folders))]  # a single one takes nothing from the generator
        return folder[rng.integers(len(folder))]

    def _played(self, name, rng):
        """A recording as one part of a sample, float32 (T,)."""
        wave = super()._wave(name, rng)
        if self.remix and rng.random() < CUT:
            kept = int(rng.uniform(*KEPT) * len(wave))
            start = rng.integers(len(wave) - kept + 1)
            wave = wave[start : start + kept]
        at = np.arange(0, len(wave) - 1, rng.uniform(*(REMIXED_SPEED if self.remix else SPEED)))
        played = np.interp(at, np.arange(len(wave)), wave)
        return (_gain(rng, GAIN) * played if self.remix else played).astype(np.float32)


def _gain(rng, decibels):
    """A random factor of amplitude in a range of decibels."""
    return 10 ** (rng.uniform(*decibels) / 20)
