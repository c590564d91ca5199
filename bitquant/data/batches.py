"""Batches in a reproducible order."""

import numpy as np

WINDOW = 64  # batches within which samples are sorted by length


class Batches:
    """Samples in batches, made one at a time by ``collate``.

    With a seed, iterating never ends: every epoch is shuffled anew, samples of similar length share a batch, and the
    n-th batch depends on nothing but the seed. Without a seed, one pass in the given order, as measuring needs.

    Args:
        samples (list): anything.
        collate (callable): (list of samples, numpy Generator or None) -> keyword arguments of the model; the generator
            is for what is random in training, and None in the pass without a seed.
        batch_size (int): samples a batch; the last of an epoch may be smaller.
        lengths (list[float], optional): of the samples, to sort by. Default: None, all alike.
        seed (int, optional): order of training. Default: None, the given order, once.
    """

    def __init__(self, samples, collate, *, batch_size, lengths=None, seed=None):
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, not {batch_size}")
        self.samples, self.collate, self.batch_size, self.seed = samples, collate, batch_size, seed
        self.lengths = None if lengths is None else np.asarray(lengths)

    def __len__(self):
        """Batches of one epoch."""
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self):
        if self.seed is None:
            for indices in self._cut(np.arange(len(self.samples))):
                yield self._batch(indices, None)
            return
        epoch = 0
        while self.samples:
            for number, indices in enumerate(self._epoch(np.random.default_rng([self.seed, epoch]))):
                yield self._batch(indices, np.random.default_rng([self.seed, epoch, number]))
            epoch += 1

    def _batch(self, indices, rng):
        return self.collate([self.samples[i] for i in indices], rng)

    def _cut(self, order):
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def _epoch(self, rng):
        order = rng.permutation(len(self.samples))
        if self.lengths is not None:
            # sort within windows of many batches: little padding, yet no batch is the same in two epochs
            window = WINDOW * self.batch_size
            windows = [order[i : i + window] for i in range(0, len(order), window)]
            order = np.concatenate([w[np.argsort(self.lengths[w], kind="stable")] for w in windows])
        starts = rng.permutation(np.arange(0, len(order), self.batch_size))
        return self._cut(np.concatenate([order[s : s + self.batch_size] for s in starts]))
