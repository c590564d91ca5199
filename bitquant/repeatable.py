"""Batches that are gone through more than once, one in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


@contextmanager
def repeatable(batches: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Context whose value gives the batches as often as it is iterated. What an iterator gives, which can be asked
    once, is kept in temporary files, deleted at the end."""
    if not isinstance(batches, Iterator):
        yield batches
        return
    with tempfile.TemporaryDirectory(prefix="bitquant-") as directory:
        yield _Kept(batches, Path(directory))


class _Kept:
    """Each batch is written when it is first asked for, and read later on."""

    def __init__(self, batches: Iterator[Any], directory: Path):
        self.batches, self.directory = batches, directory
        self.rest: list[tuple[list[Any], Any]] = []  # of each batch what is no tensor, and how it is nested

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.rest)):
            yield self._read(index)
        for batch in self.batches:
            self._write(batch)
            yield batch

    def _file(self, index: int) -> Path:
        return self.directory / f"{index}.safetensors"

    def _write(self, batch: Any) -> None:
        leaves, structure = tree_flatten(dict(batch) if isinstance(batch, Mapping) else batch)
        tensors = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        # copies: tensors of one file may share no memory
        save_file(
            {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, self._file(len(self.rest))
        )
        self.rest.append(([leaf.device if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure))

    def _read(self, index: int) -> Any:
        leaves, structure = self.rest[index]
        tensors = load_file(self._file(index))
        # of a tensor the device was kept
        read = [tensors[str(i)].to(leaf) if str(i) in tensors else leaf for i, leaf in enumerate(leaves)]
        return tree_unflatten(read, structure)
