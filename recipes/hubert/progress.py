"""A progress bar on stderr for things that are gone through."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click


def watched(items: Iterable, count: int, what: str = "reading") -> Iterator:
    """The items, one by one, while a bar advances."""
    with click.progressbar(items, length=count, label=what, file=sys.stderr) as bar:
        yield from bar
