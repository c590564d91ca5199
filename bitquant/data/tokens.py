"""Token batches: a tokenizer file, padding and masks."""

from pathlib import Path

import numpy as np
import torch

from bitquant.data.batches import Batches
from bitquant.json_object import read_object


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

    @classmethod
    def of(cls, directory):
        """The tokenizer of a model's directory, with the padding id of its ``config.json``; None when there is none."""
        directory = Path(directory)
        if not (directory / "tokenizer.json").is_file():
            return None
        config = directory / "config.json"
        pad_id = read_object(config).get("pad_token_id") if config.is_file() else None
        return cls(directory / "tokenizer.json", pad_id if isinstance(pad_id, int) and pad_id >= 0 else None)

    @property
    def vocabulary(self):
        """Number of different tokens."""
        return self._backend.get_vocab_size()

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


class TextBatches(Batches):
    """Padded batches of sentences: dicts of ``input_ids`` and ``attention_mask``, int64 (B, T).

    Args:
        tokenizer (Tokenizer): turns sentences into padded tensors.
        sentences (list[str]): the data.
        batch_size (int): sentences a batch. Default: 32.
        max_length (int): longest sequence in tokens. Default: 128.
        seed (int, optional): order of training, endless. Default: None, the given order, once.
    """

    def __init__(self, tokenizer, sentences, *, batch_size=32, max_length=128, seed=None):
        if max_length < 4:
            raise ValueError(f"length must be at least 4 tokens, not {max_length}")
        encoded = tokenizer.encode(sentences, max_length)
        lengths = [len(e) for e in encoded]
        super().__init__(
            encoded, lambda rows, rng: tokenizer.pad(rows), batch_size=batch_size, lengths=lengths, seed=seed
        )
