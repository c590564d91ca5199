"""Training and held-out data: a text file or folder becomes sentences, and sentences become padded token batches."""

from bitquant.data.split import hold_out
from bitquant.data.text import read_text, split_sentences
from bitquant.data.tokens import TextBatches, Tokenizer

__all__ = ["TextBatches", "Tokenizer", "hold_out", "read_text", "split_sentences"]
