"""Random changes of a checkpoint's two files."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

# a name that would run, were it written into a program as it is
PAYLOAD = 'x"), getattr(getattr(__import__("os"), "environ"), "setdefault")("BITQUANT_FUZZ_RAN", "1"), getattr(self, "x'
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 64, 2**31 - 1, 2**31, 2**60, 2**63 - 1, 2**63, 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, -1.5, math.nan, math.inf, -math.inf),
    *("", "x", "1", "float32", "float64", "int8", "load", "module", "fx", "fall-back", "float", "signed", "whole"),
    *("table", "row-max", "row", "tensor", "reflect", "PackedLinear", "BitLinear", "BitAttention", "PackedConv"),
    *("forward", "training", "_modules", "__class__", "__init__", "re:(a+)+$", "(x+x+)+y", "layers.0", "encoder"),
    *("bit_attention_0", "bit_linear_fn_0", "os:system", "../../x", "/etc/passwd", "a\nb", "\ud800", "é", "x" * 10**5),
    *(PAYLOAD, [], {}, [[]], [0], [1, 1], [[1, 1]], [True], [PAYLOAD], {"x": 1}, {"type": "BitEinsum"}),
)


def change_config(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three changes somewhere in a ``config.json``, most of them in its quantization."""
    config = copy.deepcopy(config)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        root = config if rng.random() < 0.3 else config["quantization_config"]
        if isinstance(root, dict):
            _change(_place(root, rng), rng)
        if not isinstance(config.get("quantization_config"), dict):
            break
    return config


def _place(root, rng):
    """A random object or list below another one."""
    at = root
    while True:
        below = [v for v in (at.values() if isinstance(at, dict) else at) if isinstance(v, dict | list) and v]
        if not below or rng.random() < 0.15:
            return at
        at = rng.choice(below)


def _change(at, rng):
    keys = list(at) if isinstance(at, dict) else list(range(len(at)))
    key, kind = (rng.choice(keys) if keys else None), rng.random()
    if kind < 0.15 or key is None:
        value = copy.deepcopy(at[rng.choice(keys)] if keys and rng.random() < 0.5 else rng.choice(VALUES))
        if isinstance(at, dict):
            names = ("x", "type", "re:.*", PAYLOAD, "", f"{key}0", "low_rank", "rules", "modules_to_not_convert")
            at[rng.choice(names)] = value
        else:
            at.insert(rng.randint(0, len(at)), value)
    elif kind < 0.3:
        del at[key]
    elif kind < 0.4 and isinstance(at, dict):
        at[rng.choice((PAYLOAD, "x", "0", f"{key}.x", "encoder", "layers.1", "head"))] = at.pop(key)
    elif kind < 0.5:
        other = rng.choice(keys)
        at[key], at[other] = at[other], at[key]
    else:
        at[key] = _near(at[key], rng)


def _near(value, rng):
    """Another value: of the same type, close by, or anything."""
    if rng.random() < 0.4:
        return copy.deepcopy(rng.choice(VALUES))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, value, -2 * value, 2**31, 2**62))
    if isinstance(value, float):
        return value * rng.choice((-1.0, 0.5, 2.0, 1e30, math.nan))
    return copy.deepcopy(rng.choice(VALUES))


def change_weights(weights: bytes, rng: random.Random) -> bytes:
    """One change of a safetensors file: of its bytes, its header, or the numbers of one tensor."""
    length = int.from_bytes(weights[:8], "little")
    kind = rng.random()
    if kind < 0.15:
        return weights[: rng.randrange(len(weights))] + bytes(rng.choice((0, 0, 9)))
    if kind < 0.5:
        content = bytearray(weights)
        at = rng.randrange(8 + length) if rng.random() < 0.5 else rng.randrange(len(weights))
        content[at] ^= 1 << rng.randrange(8)
        return bytes(content)
    header, data = json.loads(weights[8 : 8 + length]), bytearray(weights[8 + length :])
    if kind < 0.75:
        _change(_place(header, rng), rng)
    else:
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        first, last = entry["data_offsets"]
        pattern = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\x80\xbf", b"\0\0\xc0\x7f"))
        at = rng.randrange(first, last) // 4 * 4 if last > first else first
        data[at : min(at + 4, last)] = pattern[: max(0, min(at + 4, last) - at)]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)
