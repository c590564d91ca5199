"""Text as data: sentences for a model that takes ``input_ids``."""

import torch

from bitquant.data.kind import Data
from bitquant.data.split import normal
from bitquant.data.text import SUFFIXES, read_text
from bitquant.data.tokens import TextBatches

SHAPES = ((1, 16), (1, 128), (32, 16), (32, 128))
EXAMPLE = ("A short sentence.", "A longer sentence with a few more words in it than the first.")


class Sentences(Data):
    """Sentences, padded to the longest of a batch, no longer than the model's positions allow."""

    kind, unit, suffixes = "text", "sentences", SUFFIXES

    def __init__(self, samples, source, **settings):
        super().__init__(samples, source, **settings)
        self.tokenizer = _tokenizer(source)
        self.max_length = min(self.max_length, source.longest() or self.max_length)

    @classmethod
    def read(cls, path, source, **settings):
        return cls(read_text(path), source, **settings)

    @classmethod
    def fits(cls, source):
        return "input_ids" in source.arguments

    @classmethod
    def example(cls, source):
        """Two sentences of different length."""
        return _tokenizer(source)(EXAMPLE)

    def key(self, sample):
        return normal(sample)

    def batches(self, samples, *, batch_size, seed=None):
        return TextBatches(self.tokenizer, samples, batch_size=batch_size, max_length=self.max_length, seed=seed)

    def in_order(self, samples):
        return sorted(samples, key=len)

    def example_inputs(self, samples):
        return self.example(self.source)

    def timings(self):
        longest = self.source.longest()
        shapes = dict.fromkeys((batch, min(tokens, longest or tokens)) for batch, tokens in SHAPES)
        return [({"batch": batch, "tokens": tokens}, self._random(batch, tokens)) for batch, tokens in shapes]

    def _random(self, batch, tokens):
        """Random token ids without padding, int64 (batch, tokens)."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.tokenizer.vocabulary, (batch, tokens), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _tokenizer(source):
    if source.tokenizer is None:
        raise ValueError(f"{source.directory} holds no tokenizer.json: without it no example input can be made")
    return source.tokenizer
