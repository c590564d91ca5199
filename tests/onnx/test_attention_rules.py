"""The keys that the functions of attention take, against the definition of the rules."""

import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from bitquant.onnx.functions import DOMAIN, OPSET, TEXTS, VERSION, functions
from bitquant.onnx.graph import IR_VERSION
from bitquant.onnx.runtime import Session
from bitquant.ops.rules import softmax_table, taken_by_row_max, taken_by_table

for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason=f'files are written and checked with {package}: pip install ".[onnx]"')

TYPES = {"q": "FLOAT", "k": "FLOAT", "keep": "BOOL", "margin": "INT64", "table": "INT64", "ratio": "INT64"}


def session(text: str, types: dict[str, str], output: str) -> Session:
    """One function of float, bool and int64 inputs, alone in a model."""
    node = helper.make_node("Alone", list(types), [output], domain=DOMAIN)
    values = [helper.make_tensor_value_info(n, TensorProto.DataType.Value(kind), None) for n, kind in types.items()]
    graph = helper.make_graph([node], "alone", values, [])
    graph.output.add().name = output
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    made = functions(["Alone"], {**TEXTS, "Alone": text})
    return Session(helper.make_model(graph, functions=made, opset_imports=opsets, ir_version=IR_VERSION))


def taken_by(attention: str) -> Session:
    """A session that gives the ``taken`` keys inside a function of attention, without its values."""
    head, _, body = TEXTS[attention].partition(" => ")
    types = {name: TYPES[name] for name in head.strip("()").split(", ") if name in TYPES}
    kept = [line for line in body.splitlines()[1:-1] if "y =" not in line]
    return session("\n".join([f"({', '.join(types)}) => (taken) {{", *kept, "}"]), types, "taken")


def cases():
    """Queries, keys and masks, among them long rows whose keys are all alike: the largest sums of a table."""
    generator = torch.Generator().manual_seed(0)
    for dimension in (1, 7, 64):
        for keys in (1, 5, 500, 4096, 4097, 9000):
            q = torch.randn(2, 2, 3, dimension, generator=generator)
            k = torch.randn(2, 2, 1 if keys > 4000 else keys, dimension, generator=generator).expand(-1, -1, keys, -1)
            keep = torch.rand(2, 1, 1, keys, generator=generator) > 0.3
            keep[1] = False
            yield q, k.contiguous(), keep
            yield q, k.contiguous(), torch.ones_like(keep)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.where(q >= 0, 1.0, -1.0) @ torch.where(k >= 0, 1.0, -1.0).mT


def test_row_max_rule():
    run = taken_by("MaskedBinaryAttention")
    for q, k, keep in cases():
        for margin in (0, 1, 2, 3, 10, 2**30):
            given = {"q": q, "k": k, "keep": keep, "margin": torch.tensor([margin])}
            assert torch.equal(run(given)["taken"].bool(), taken_by_row_max(scores(q, k), keep, given["margin"]))


def test_table_rule():
    run = taken_by("MaskedTableAttention")
    for q, k, keep in cases():
        fair = 2**24 // k.shape[-2]
        for temperature in (1e-4, 0.02, 0.5):
            table = softmax_table(torch.tensor(temperature), q.shape[-1])
            for ratio in (1, int(0.9 * fair), fair, 2**22, 2**25):
                given = {"q": q, "k": k, "keep": keep, "table": table, "ratio": torch.tensor([ratio])}
                expected = taken_by_table(scores(q, k), keep, table, given["ratio"])
                assert torch.equal(run(given)["taken"].bool(), expected)


def test_long_sums_are_exact():
    run = session(TEXTS["ExactSum"], {"weight": "FLOAT"}, "whole")
    generator = torch.Generator().manual_seed(0)
    for keys in (1, 4095, 4096, 4097, 20_000):
        weight = torch.randint(4090, 4097, (2, 3, keys), generator=generator)
        assert torch.equal(run({"weight": weight.float()})["whole"], weight.sum(-1, keepdim=True))
