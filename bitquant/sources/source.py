"""A float model as it was found."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from bitquant.data import Tokenizer

TOKENIZER, PREPROCESSOR = "tokenizer.json", "preprocessor_config.json"


@dataclass
class Source:
    """A float model, and where to find what its inputs need.

    Args:
        name: as the user gave it: a path, or ``package.module:factory``.
        model: float32, eval mode.
        directory: is searched for ``config.json``, ``tokenizer.json`` and ``preprocessor_config.json``.
        weights: safetensors files.
        factory: ``package.module:factory`` when the model was made by one.
    """

    name: str
    model: nn.Module
    directory: Path
    weights: list[Path]
    factory: str | None = None

    @cached_property
    def tokenizer(self):
        """The directory's ``Tokenizer``, or None when it holds none."""
        return Tokenizer.of(self.directory)

    @cached_property
    def arguments(self):
        """Names of the arguments that the model's forward can be given by keyword, in order; ValueError for none."""
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = inspect.signature(self.model.forward).parameters.values()
        names = [p.name for p in parameters if p.kind in kinds]
        if not names:
            raise ValueError(f"the forward of {self.name} names no argument, so nothing says what it takes")
        return names

    def example_inputs(self, path=None):
        """A small batch of the data at a path, or one that needs no data: keyword arguments of the model."""
        from bitquant.data import example_inputs

        return example_inputs(self, path)

    def longest(self):
        """Most tokens that the model's position table allows; None when there is no limit."""
        positions = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        tables = (m for name, m in self.model.named_modules() if name.endswith("position_embeddings"))
        # RoBERTa and its kin count positions from behind the padding index
        reserved = max((m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None), default=0)
        return positions and positions - reserved

    def file(self, name):
        """A file of the directory, or None when it is not there."""
        file = self.directory / name
        return file if file.is_file() else None

    def files(self):
        """The files that loading needs: weights, and of the others those that exist."""
        rest = () if self.factory else ("config.json",)
        return self.weights + [f for f in map(self.file, (*rest, TOKENIZER, PREPROCESSOR)) if f]
