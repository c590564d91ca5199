"""Training and held-out data of several kinds, one file each, behind the interface of ``bitquant.data.kind.Data``."""

from bitquant.data.registry import KINDS, describe, example_inputs, read_data, recognise, restore
from bitquant.data.sentences import Sentences
from bitquant.data.split import hold_out
from bitquant.data.text import read_text, split_sentences
from bitquant.data.tokens import TextBatches, Tokenizer

__all__ = [
    "KINDS",
    "Sentences",
    "TextBatches",
    "Tokenizer",
    "describe",
    "example_inputs",
    "hold_out",
    "read_data",
    "read_text",
    "recognise",
    "restore",
    "split_sentences",
]
