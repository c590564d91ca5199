"""``quantization_config`` of a checkpoint: its digest, and the one check that every field, and all of them together,
say what a checkpoint can say. Nothing here reads weights, builds a module or matches a pattern."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitquant import config as configuration
from bitquant.capture import CHILDREN, child_kind
from bitquant.fields import (
    anything,
    check_object,
    flag,
    list_of,
    name,
    number,
    object_of,
    one_of,
    optional,
    shown,
    whole,
)
from bitquant.packed.specification import FIELDS, FLOAT, check_spec
from bitquant.plan import REASONS
from bitquant.record import Row
from bitquant.skeleton import ATTENTION

METHOD = "bitquant"
FORMAT_VERSION = 2

_META = {
    "quant_method": one_of(METHOD),
    "format_version": one_of(FORMAT_VERSION),
    "sha256": name,
    "tied": object_of(name),
    "structure": anything,
    "layout": anything,
    "attention": one_of(None, *ATTENTION),
    "factory": name,
}
_LAYOUT = {"strides": anything, "frozen": list_of(name)}  # the rest is checked where the tensors are known
_STRUCTURE = {"record": anything, "modules": object_of(anything), "owners": object_of(anything)}
_CONFIG = {
    **{key: one_of(*allowed) for key, allowed in configuration.CHOICES.items()},
    "name": name,
    "weight_scale_learnable": flag,
    "relu": flag,
    "attention_keep": number(1e-30, 1),
    "signed_init": number(1e-30, 1e30),
    "low_rank": whole(),
    "version": one_of(configuration.FORMAT_VERSION),
}
_COUNT = whole(0, 2**63 - 1)
_RECORD = {
    "config": anything,
    "overrides": object_of(anything),
    "rows": list_of(anything),
    "total_macs": _COUNT,
    "blocks": list_of(name),
    "relu": list_of(name),
}
_BITS = one_of(1, 2, 4, 8, 32)
_ROW = {
    "path": name,
    "kind": name,
    "role": name,
    "shapes": list_of(list_of(_COUNT)),
    "macs": _COUNT,
    "traced": one_of(None, "module", "fx", "fall-back"),
    "reason": one_of(None, *REASONS),
    "weight_bits": optional(_BITS),
    "activation_bits": _BITS,
    "note": optional(name),
}
_OWNER = {
    "children": object_of(one_of(*CHILDREN)),
    "left": list_of(name),
    "operands": object_of(anything),
    "path": one_of("fx", "fall-back", "float"),
    "reason": optional(name),
}
_OPERAND = {"form": one_of("whole", "transposed"), "paths": list_of(name, 1)}
# kinds of products that each type of child stands for, and of layers that each type of module is
_KINDS = {
    "BitLinear": {"linear"},
    "PackedLinear": {"linear"},
    "BitConv": {"conv1d", "conv2d"},
    "PackedConv": {"conv1d", "conv2d"},
    "BitEmbedding": {"embedding"},
    "PackedEmbedding": {"embedding"},
    "BitAttention": {"attention"},
    "PackedAttention": {"attention"},
    "BitFunctionalLinear": {"linear_fn", "matmul"},
    "PackedFunctionalLinear": {"linear_fn", "matmul"},
    "BitMatmul": {"matmul"},
    "BitEinsum": {"einsum"},
}
_BY_PARAMETER = ("BitFunctionalLinear", "PackedFunctionalLinear")


def digest(config: dict[str, Any], weights: Path) -> str:
    """sha256, in hex, of a ``config.json`` without the digest itself, in canonical form, and of its weights file."""
    meta = {key: value for key, value in config["quantization_config"].items() if key != "sha256"}
    try:
        canonical = json.dumps({**config, "quantization_config": meta}, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError("config.json is nested too deeply") from None
    return digest_file(weights, before=canonical.encode("ascii") + b"\n")


def digest_file(file: Path, before: bytes = b"") -> str:
    """sha256, in hex, of some bytes and what a file holds."""
    hasher = sha256(before)
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def check_metadata(meta: dict[str, Any]) -> None:
    """ValueError, in one sentence, for the first thing in a ``quantization_config`` that no checkpoint of this format
    says: a missing or unknown field, a value of another type or out of its bounds, layers and products that the record
    of them does not have."""
    check_object(meta, _META, "quantization_config", optional=frozenset({"factory"}))
    check_object(meta["layout"], _LAYOUT, "the layout")
    structure = meta["structure"]
    check_object(structure, _STRUCTURE, "the structure")
    record, modules, owners = structure["record"], structure["modules"], structure["owners"]
    check_object(record, _RECORD, "the record")
    check_object(record["config"], _CONFIG, "the record's config")
    for row in record["rows"]:
        check_object(row, _ROW, "a row of the record")
    rows = {row["path"]: row for row in record["rows"] if row["reason"] is None}
    for path in record["overrides"]:
        if path not in rows:
            raise ValueError(f"the record overrides {shown(path)}, which is none of its quantized layers")
        optional_fields = frozenset(_CONFIG)
        check_object(record["overrides"][path], _CONFIG, f"the override of {shown(path)}", optional=optional_fields)
    for path, spec in modules.items():
        config = {**record["config"], **record["overrides"].get(path, {})}
        _check_module(path, spec, rows.get(path), config)
    for path in rows:
        if path not in modules:
            raise ValueError(f"the record quantizes {shown(path)}, of which the structure has no module")
    children = set()
    for path, owner in owners.items():
        children |= _check_owner(path, owner, modules)
    for path, spec in modules.items():
        if spec["type"] not in FLOAT and path not in children:
            raise ValueError(f"{shown(path)} is the product of a module that the structure does not rewrite")


def _check_module(path: str, spec: dict[str, Any], row: dict[str, Any] | None, config: dict[str, Any]) -> None:
    place, kind = shown(path), spec.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"the type of {place} must be one of {', '.join(FIELDS)}, not {shown(kind)}")
    spec = {key: value for key, value in spec.items() if key != "type"}
    check_spec(kind, spec, place)
    if row is None or row["kind"] not in _KINDS[kind] or (row["traced"] == "module") != (kind in FLOAT):
        raise ValueError(f"{place} is a {kind}, which the record says nothing of")
    expected = _widths(kind, spec, row, config)
    if (row["weight_bits"], row["activation_bits"]) != expected:
        raise ValueError(f"the record's bits of {place} are not those of its {kind}")
    if "head_dim" in spec and row["shapes"] and row["shapes"][0][-1:] != [spec["head_dim"]]:
        raise ValueError(f"head_dim of {place} is {spec['head_dim']}, not that of the record's shapes")


def _widths(kind: str, spec: dict[str, Any], row: dict[str, Any], config: dict[str, Any]) -> tuple[int | None, int]:
    """Bits of weight and activation that a module has."""
    if kind == "PackedEmbedding":
        return spec["bits"], 32
    if "bits" in spec:
        return 1, spec["bits"]
    if kind == "PackedAttention":
        return None, 1
    made = Row(**row)
    made.set_bits(configuration.QuantConfig(**config))
    return made.weight_bits, made.activation_bits


def _check_owner(path: str, owner: dict[str, Any], modules: dict[str, Any]) -> set[str]:
    """Paths of an owner's children, which are in the structure, and of the kinds that it calls them."""
    place = f"the rewritten module {shown(path)}"
    check_object(owner, _OWNER, place)
    if not owner["children"]:
        raise ValueError(f"{place} has no child")
    for child in [*owner["children"], *owner["left"]]:
        if child_kind(child) is None or owner["children"].get(child, child_kind(child)) != child_kind(child):
            raise ValueError(f"{place} has a child of the name {shown(child)}, which is none of ours")
    below = {child: f"{path}.{child}" if path else child for child in owner["children"]}
    by_parameter = set()
    for child, at in below.items():
        kind = modules.get(at, {}).get("type")
        if kind in FLOAT or owner["children"][child] not in _KINDS.get(kind, ()):
            raise ValueError(f"{place} has a child {child} that is not in the structure")
        if kind in _BY_PARAMETER:
            by_parameter.add(child)
    if by_parameter != owner["operands"].keys():
        raise ValueError(f"the operands of {place} are not those of its products with parameters")
    for child, operand in owner["operands"].items():
        check_object(operand, _OPERAND, f"an operand of {place}")
        if modules[below[child]]["parameter"] not in operand["paths"]:
            raise ValueError(f"the operand of {place} is not the parameter of its product")
    return set(below.values())
