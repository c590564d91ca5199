"""The functions that stand for layers: levels, signs, product, scale and bias.

Each exists for inputs of 1 bit (``Binary...``) and of 2, 4 or 8 (``Integer...``), over packed signs and, named
``Folded...``, over signs that are stored as int8.
"""

from .convolutions import GEOMETRY

_QUANTIZERS = {
    "Binary": ("zero_point", ("threshold",), "bitquant.BinaryLevels <zero_point: int = @zero_point> (x, {offset})"),
    "Integer": (
        "zero_point, top",
        ("shift", "step"),
        "bitquant.IntegerLevels <zero_point: int = @zero_point, top: int = @top> (x, {offset}, step)",
    ),
}
_SIGNS = {
    "": ("columns", "packed", "signs = bitquant.Signs <columns: int = @columns> (packed)"),
    "Folded": ("columns", "signs", ""),
}
_PASSED = ", ".join(
    f"{name}: {'int' if name == 'group' else 'ints'} = @{name}" for name in GEOMETRY.split(", ")
)  # the geometry, handed on


def _linear(quantizer: str, signs: str) -> str:
    settings, offsets, levels = _QUANTIZERS[quantizer]
    columns, stored, unpack = _SIGNS[signs]
    return f"""<{columns}, {settings}> (x, {", ".join(offsets)}, {stored}, scale, bias) => (y) {{
        zero = bitquant.ZeroPoint <zero_point: int = @zero_point> ()
        levels = {levels.format(offset=offsets[0])}
        {unpack}
        weight = Transpose <perm: ints = [1, 0]> (signs)
        sums = MatMulInteger (levels, weight, zero)
        y = bitquant.Scaled (x, sums, scale, bias)
    }}"""


def _conv(quantizer: str, signs: str, product: str, axes: list[int]) -> str:
    settings, offsets, levels = _QUANTIZERS[quantizer]
    columns, stored, unpack = _SIGNS[signs]
    return f"""<{columns}, {settings}, {GEOMETRY}> (x, {", ".join(offsets)}, {stored}, scale, bias) => (y) {{
        space = Constant <value_ints: ints = {axes}> ()
        by_channel = Unsqueeze ({offsets[0]}, space)
        zero = bitquant.ZeroPoint <zero_point: int = @zero_point> ()
        all = {levels.format(offset="by_channel")}
        levels = bitquant.Present (x, all, zero)
        {unpack}
        sums = bitquant.{product} <{_PASSED}> (levels, zero, signs)
        scales = Unsqueeze (scale, space)
        biases = Unsqueeze (bias, space)
        y = bitquant.Scaled (x, sums, scales, biases)
    }}"""


TEXTS = {
    f"{signs}{quantizer}{name}": text
    for quantizer in _QUANTIZERS
    for signs in _SIGNS
    for name, text in {
        "Linear": _linear(quantizer, signs),
        "Conv1d": _conv(quantizer, signs, "Conv1d", [1]),
        "Conv2d": _conv(quantizer, signs, "Conv2d", [1, 2]),
        "DepthwiseConv1d": _conv(quantizer, signs, "DepthwiseConv", [1]),
        "DepthwiseConv2d": _conv(quantizer, signs, "DepthwiseConv", [1, 2]),
    }.items()
}
