"""What a checkpoint says of each rewritten layer: types and bounds, and that it fits the float layer it stands for."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from bitquant.fields import LARGEST, check_object, flag, list_of, name, number, one_of, shown, whole
from bitquant.packed.conv import padding_pairs

_size = whole(1)
_sizes = list_of(_size, 1, 2)
_dtype = one_of("float16", "bfloat16", "float32", "float64")
_rest = {
    "bits": one_of(1, 2, 4, 8, 32),
    "signed": flag,
    "bias": flag,
    "scales": _size,
    "dtype": _dtype,
    "low_rank": whole(),
}
_linear = {"in_features": _size, "out_features": _size, **_rest}
_two_flags = list_of(flag, 2, 2)

FIELDS = {
    "BitLinear": {"nonnegative": flag},
    "BitConv": {"nonnegative": flag},
    "BitEmbedding": {},
    "BitAttention": {"head_dim": _size, "score_bias": flag},
    "BitFunctionalLinear": {
        "shape": list_of(_size, 2, 2),
        "parameter": name,
        "transposed": flag,
        "matmul": flag,
        "nonnegative": flag,
    },
    "BitMatmul": {"nonnegative": _two_flags, "probability": flag},
    "BitEinsum": {"nonnegative": _two_flags},
    "PackedLinear": _linear,
    "PackedFunctionalLinear": {"parameter": name, **_linear},
    "PackedConv": {
        "in_channels": _size,
        "out_channels": _size,
        "kernel_size": _sizes,
        "stride": _sizes,
        "padding": list_of(list_of(whole(), 2, 2), 1, 2),
        "dilation": _sizes,
        "groups": _size,
        "padding_mode": one_of("zeros", "reflect", "replicate", "circular"),
        **_rest,
    },
    "PackedEmbedding": {"rows": _size, "dim": _size, "bits": one_of(1, 2, 4, 8), "dtype": _dtype},
    "PackedAttention": {
        "rule": one_of("row-max", "table"),
        "head_dim": _size,
        "score_scale": number(1e-30, 1e30),
    },
}
FLOAT = {
    "BitLinear": nn.Linear,
    "PackedLinear": nn.Linear,
    "BitConv": (nn.Conv1d, nn.Conv2d),
    "PackedConv": (nn.Conv1d, nn.Conv2d),
    "BitEmbedding": nn.Embedding,
    "PackedEmbedding": nn.Embedding,
}


def check_spec(kind: str, spec: dict[str, Any], place: str) -> None:
    """ValueError for a type, value or size that no layer of this kind has."""
    check_object(spec, FIELDS[kind], place)
    rows = spec.get("out_features", spec.get("out_channels"))
    if "scales" in spec and spec["scales"] not in (1, rows):
        raise ValueError(f"{place} must have 1 or {rows} scales, not {spec['scales']}")
    if kind == "PackedConv":
        _check_geometry(spec, place)
    widths = (spec.get("in_features", spec.get("in_channels")), rows)
    if spec.get("low_rank", 0) > min(w for w in (*widths, LARGEST) if w is not None):
        raise ValueError(f"low_rank of {place} is {spec['low_rank']}, wider than the layer itself")


def _check_geometry(spec: dict[str, Any], place: str) -> None:
    space = {len(spec[key]) for key in ("kernel_size", "stride", "padding", "dilation")}
    if len(space) != 1:
        raise ValueError(f"kernel_size, stride, padding and dilation of {place} are not equally long")
    if spec["in_channels"] % spec["groups"] or spec["out_channels"] % spec["groups"]:
        raise ValueError(f"the channels of {place} do not divide into {spec['groups']} groups")
    reach = [d * (k - 1) for d, k in zip(spec["dilation"], spec["kernel_size"], strict=True)]
    if max(*reach, spec["in_channels"] * math.prod(spec["kernel_size"])) > LARGEST:
        raise ValueError(f"the kernel of {place} spans 2^31 values or more")


def check_fit(kind: str, spec: dict[str, Any], module: nn.Module, place: str) -> None:
    """ValueError unless the float ``module`` at a path is what a layer of this kind and specification is made of."""
    if not isinstance(module, FLOAT[kind]) or getattr(module, "max_norm", None) is not None:
        raise ValueError(f"{place} is a {type(module).__name__}, of which no {kind} is made")
    if kind.startswith("Bit"):
        return
    for key, expected in _of_float(module).items():
        if spec[key] != expected:
            raise ValueError(f"{key} of {place} is {shown(spec[key])}, not {expected} as in the model")


def check_parameter(kind: str, spec: dict[str, Any], owner: nn.Module, place: str) -> None:
    """ValueError unless the owner of a product has the matrix parameter that its child multiplies by."""
    parameter = dict(owner.named_parameters(remove_duplicate=False)).get(spec["parameter"])
    shape = spec["shape"] if kind.startswith("Bit") else [spec["out_features"], spec["in_features"]]
    if spec.get("transposed"):
        shape = shape[::-1]
    found = None if parameter is None else list(parameter.shape)
    if found != shape and not (kind.startswith("Packed") and found == shape[::-1]):
        raise ValueError(f"{place} multiplies by a parameter of shape {shape}, which its module does not have")


def _of_float(module: nn.Module) -> dict[str, Any]:
    """What a float layer fixes of the packed one's specification."""
    if isinstance(module, nn.Embedding):
        return {"rows": module.num_embeddings, "dim": module.embedding_dim}
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return {"in_features": module.in_features, "out_features": module.out_features, "bias": bias}
    return {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "kernel_size": list(module.kernel_size),
        "stride": list(module.stride),
        "padding": padding_pairs(module),
        "dilation": list(module.dilation),
        "groups": module.groups,
        "padding_mode": module.padding_mode,
        "bias": bias,
    }
