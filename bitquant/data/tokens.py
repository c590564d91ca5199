"""Token batches: a tokenizer file, padding and masks, and the order of training."""

from pathlib import Path

import numpy as np
import torch


class Tokenizer:
    """A ``tokenizer.json`` with the padding id that the model expects.

    Args:
        file (str or Path): a tokenizer file of the ``tokenizers`` library.
        pad_id (int, optional): padding token. Default: the file's own padding entry, else its ``[PAD]`` or ``<pad>``
            token, else 0.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the ``tokenizers`` library is not installed.
        ValueError: the file is not a tokenizer.
    """

    def __init__(self, file, pad_id=None):
        try:
            from tokenizers import Tokenizer as Backend
        except ModuleNotFoundError:
            raise ModuleNotFoundError("reading a tokenizer needs an extra: pip install 'bitquant-torch[hf]'") from None
        self.file = Path(file)
        if not self.file.is_file():
            raise FileNotFoundError(f"tokenizer file {file} does not exist")
        try:
            self._backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{file} is not a tokenizer file: {error}") from None
        self.pad_id = self._find_pad_id() if pad_id is None else pad_id
        # truncation is this class's job, and one sentence's tokens must not depend on its neighbours
        self._backend.no_padding()
        self._backend.no_truncation()

    def _find_pad_id(self):
        if self._backend.padding:
            return self._backend.padding["pad_id"]
        ids = (self._backend.token_to_id(token) for token in ("[PAD]", "<pad>"))
        return next((i for i in ids if i is not None), 0)

    def encode(self, sentences, max_length):
        """Token ids with the model's special tokens, cut to ``max_length``: a list of int64 arrays of shape (T,)."""
        self._backend.enable_truncation(max_length)
        return [np.array(e.ids, dtype=np.int64) for e in self._backend.encode_batch(list(sentences))]

    def pad(self, encoded):
        """Pads to the longest: ``input_ids`` and ``attention_mask``, int64 tensors of shape (B, T)."""
        length = max(map(len, encoded))
        ids = torch.full((len(encoded), length), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def __call__(self, sentences, max_length=128):
        """One padded batch of all the sentences."""
        return self.pad(self.encode(sentences, max_length))


class TextBatches:
    """Padded batches of sentences: dicts of ``input_ids`` and ``attention_mask``, int64 (B, T).

    With a seed, iterating never ends: every epoch is shuffled anew, sentences of similar length share a batch, and the
    n-th batch depends on nothing but the seed. Without a seed, one pass in the given order, as measuring needs.

    Args:
        tokenizer (Tokenizer): turns sentences into padded tensors.
        sentences (list[str]): the data.
        batch_size (int): sentences a batch. Default: 32.
        max_length (int): longest sequence in tokens. Default: 128.
        seed (int, optional): order of training. Default: None, the given order, once.
    """

    def __init__(self, tokenizer, sentences, *, batch_size=32, max_length=128, seed=None):
        if batch_size < 1 or max_length < 4:
            raise ValueError(f"batch size must be at least 1 and length at least 4, not {batch_size} and {max_length}")
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed
        self._encoded = tokenizer.encode(sentences, max_length)

    def __len__(self):
        """Batches of one epoch."""
        return -(-len(self._encoded) // self.batch_size)

    def __iter__(self):
        if self.seed is None:
            yield from self._batches(np.arange(len(self._encoded)))
            return
        epoch = 0
        while self._encoded:
            yield from self._epoch(epoch)
            epoch += 1

    def _batches(self, order):
        for start in range(0, len(order), self.batch_size):
            yield self.tokenizer.pad([self._encoded[i] for i in order[start : start + self.batch_size]])

    def _epoch(self, epoch):
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._encoded))
        # sort within windows of many batches: little padding, yet no batch is the same in two epochs
        window = 64 * self.batch_size
        lengths = np.array([len(e) for e in self._encoded])
        windows = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([w[np.argsort(lengths[w], kind="stable")] for w in windows])
        starts = rng.permutation(np.arange(0, len(order), self.batch_size))
        yield from self._batches(np.concatenate([order[s : s + self.batch_size] for s in starts]))
