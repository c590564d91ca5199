"""Torch functions by meaning: which ones are products, and one name for all spellings of the others."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

PRODUCTS = {
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, operator.matmul, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
        "matmul",
    ),
    **dict.fromkeys(("matmul", "bmm", "mm"), "matmul"),  # methods, in a graph
    torch.einsum: "einsum",
    F.linear: "linear_fn",
    F.conv1d: "conv1d_fn",
    F.conv2d: "conv2d_fn",
    F.conv3d: "conv3d_fn",
    F.scaled_dot_product_attention: "attention",
}

_ALIASES = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "_safe_softmax": "softmax",
    "float": "to",
    "half": "to",
    "bfloat16": "to",
    "double": "to",
    "type": "to",
    "type_as": "to",
    "clone": "to",
    "contiguous": "to",
    "reshape": "view",
    "_unsafe_view": "view",
    "absolute": "abs",
}
_REFLECTED = {"radd": "add", "rmul": "mul"}  # the other reflected operators are not commutative and keep their name


def words(text: str) -> frozenset[str]:
    """A set of names."""
    return frozenset(text.split())


def product_kind(func, kwargs) -> str | None:
    """The kind of product `func` computes, None when it is no product or writes into a given tensor."""
    try:
        kind = PRODUCTS.get(func)
    except TypeError:  # an unhashable callable
        return None
    return None if kind is None or "out" in kwargs else kind


def function_name(func) -> tuple[str, bool]:
    """One name for all spellings of a function ("div" for `/`, `/=`, `Tensor.div_`), and whether it is in place."""
    if isinstance(func, str):
        name = func
    else:
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property of torch.Tensor
            name = func.__self__.__name__
    in_place = False
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        name = _REFLECTED.get(name, name)
    elif name.endswith("_") and not name.startswith("_"):
        name, in_place = name[:-1], True
    if name in ("iadd", "isub", "imul", "itruediv", "idiv", "iand", "ior", "ipow", "ifloordiv"):
        name, in_place = name[1:], True
    if name == "setitem":
        in_place = True
    return _ALIASES.get(name, name), in_place
