"""The model-local functions of an exported file: every packed layer in standard operators of opset 20.

A runtime inlines them and folds what does not depend on the input when it loads the file; one that has a kernel of the
same domain and name may run that instead. ``MatMulInteger(uint8, int8)`` is the one exact product that is fast
everywhere; what was compared is in reference/onnx.md 6.2 to 6.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from onnx import FunctionProto, parser

from . import attention, convolutions, layers, levels, products

DOMAIN, VERSION, OPSET = "bitquant", 1, 20

TEXTS = {**levels.TEXTS, **layers.TEXTS, **convolutions.TEXTS, **attention.TEXTS, **products.TEXTS}


def functions(names: Iterable[str], texts: dict[str, str] = TEXTS) -> list[FunctionProto]:
    """The named functions and all that they call, each once, those that are called first."""
    found: dict[str, FunctionProto] = {}

    def add(name: str) -> None:
        if name not in found:
            for called in re.findall(rf"\b{DOMAIN}\.(\w+)", texts[name]):
                add(called)
            head = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : {VERSION}]>'
            found[name] = parser.parse_function(f"{head}\n{name} {texts[name]}")

    for name in names:
        add(name)
    return list(found.values())
