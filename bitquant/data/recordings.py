"""Speech and other sound as data: a folder of recordings for a model that takes waveforms or log-mel features."""

from pathlib import Path

import numpy as np

from bitquant.data.audio import SUFFIXES, check_audio, read_audio
from bitquant.data.batches import Batches
from bitquant.data.kind import Data, files_below, names_inputs
from bitquant.data.speech import speech_processor

CACHE_BYTES = 2**30
SPEECH_ARGUMENTS = {"input_values", "input_features"}


class Recordings(Data):
    """Recordings, resampled to the model's rate.

    In training a recording longer than ``max_seconds`` gives another part of itself each time; measured is its
    beginning. Where the model takes no padding mask there is no padding either: the recordings of a training batch are
    cut to the shortest, and each is measured alone.

    Args:
        samples (list[str]): file names below ``root``.
        source (Source): the model.
        root (str): the folder.
    """

    kind, unit, suffixes = "audio", "recordings", SUFFIXES
    batch_size, most_held_out = 8, 200

    def __init__(self, samples, source, *, root, **settings):
        super().__init__(samples, source, **settings)
        self.root, self.processor = Path(root), speech_processor(source)
        self.seconds, self._cache, self._free = {}, {}, CACHE_BYTES

    @classmethod
    def read(cls, path, source, **settings):
        root = Path(path) if Path(path).is_dir() else Path(path).parent
        names = [file.relative_to(root).as_posix() for file in files_below(path, cls.suffixes)]
        return cls(names, source, root=str(root.resolve()), **settings)

    @classmethod
    def fits(cls, source):
        return bool(SPEECH_ARGUMENTS & set(source.arguments)) or not names_inputs(source)

    @classmethod
    def example(cls, source):
        """Noise of 1 and, where the model takes a mask, of 0.6 seconds."""
        processor = speech_processor(source)
        second = _noise(processor.rate)
        return processor([second, second[: int(0.6 * len(second))] if processor.mixes_lengths else second])

    def usable(self, samples):
        kept, skipped = [], []
        for name in samples:
            try:
                self.seconds[name] = check_audio(self.root / name)
                kept.append(name)
            except ValueError as error:
                skipped.append((name, str(error)))
        return kept, skipped

    def batches(self, samples, *, batch_size, seed=None):
        if seed is None and not self.processor.mixes_lengths:
            batch_size = 1
        lengths = [self._length(name) for name in samples]
        return Batches(samples, self.collate, batch_size=batch_size, lengths=lengths, seed=seed)

    def in_order(self, samples):
        return sorted(samples, key=self._length)

    def example_inputs(self, samples):
        """The shortest and the longest of the first 32, no more than 2 seconds of each."""
        few = sorted(samples[:32], key=self._length)
        waves = [self._wave(name, None)[: 2 * self.processor.rate] for name in (few[0], few[-1])]
        return self.processor(self._alike(waves))

    def collate(self, samples, rng):
        return self.processor(self._alike([self._wave(name, rng) for name in samples]))

    def timings(self):
        rate, longest = self.processor.rate, self.max_seconds
        shapes = dict.fromkeys(((1, min(1.0, longest)), (1, longest), (self.batch_size, longest)))
        inputs = [(*shape, self.processor([_noise(int(shape[1] * rate))] * shape[0])) for shape in shapes]
        return [({"batch": batch, "seconds": seconds}, batch_inputs) for batch, seconds, batch_inputs in inputs]

    def settings(self):
        return {**super().settings(), "root": str(self.root)}

    def _length(self, name):
        if name not in self.seconds:
            self.seconds[name] = check_audio(self.root / name)
        return min(self.seconds[name], self.max_seconds)

    def _wave(self, name, rng):
        if name in self._cache:
            return self._cache[name]
        spare = self.seconds.get(name, 0.0) - self.max_seconds
        start = rng.uniform(0, spare) if rng is not None and spare > 0 else 0.0
        wave = read_audio(self.root / name, self.processor.rate, start=start, seconds=self.max_seconds)
        if spare <= 0 and wave.nbytes <= self._free:
            self._cache[name] = wave
            self._free -= wave.nbytes
        return wave

    def _alike(self, waves):
        shortest = min(map(len, waves))
        return waves if self.processor.mixes_lengths else [wave[:shortest] for wave in waves]


def _noise(length):
    """White noise, float32 (length,), the same at every call."""
    return np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
