"""The encoders behind one interface: frames and padding in, all hidden states at the full frame rate out.

A new encoder is one file with a subclass of ``Encoder`` and one line here.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from .base import Encoder, Frames

ENCODERS = {
    "transformer": "transformer.Transformer",
    "conformer": "conformer.Conformer",
    "squeezeformer": "squeezeformer.Squeezeformer",
    "sparseformer": "sparseformer.Sparseformer",
}


def build_encoder(kind: str, **options: Any) -> Encoder:
    """The encoder called ``kind`` with the options of its class.

    Raises:
        ValueError: an unknown encoder or option, with those that are known.
    """
    if kind not in ENCODERS:
        raise ValueError(f"no encoder {kind!r}; encoders: {', '.join(ENCODERS)}")
    file, name = ENCODERS[kind].split(".")
    cls = getattr(import_module(f"{__package__}.{file}"), name)
    known = [p for p in inspect.signature(cls).parameters if p != "self"]
    if unknown := set(options) - set(known):
        raise ValueError(f"encoder {kind!r} has no option {min(unknown)!r}; options: {', '.join(known)}")
    return cls(**options)


__all__ = ["ENCODERS", "Encoder", "Frames", "build_encoder"]
