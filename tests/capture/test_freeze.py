"""Frozen models export and compile, for every length."""

import copy

import encoder_zoo as zoo
import pytest
import torch
from identity import Child, call, difference, rewrite_

from bitquant.capture import CaptureError, code, freeze_, owners

NAMES = ["hubert", "wavlm", "bert", "deberta-v2", "t5-encoder", "swin", "nn-transformer-encoder", "hand-written"]


def frozen(name):
    """(frozen, original, two calls of one kind and other sizes)"""
    model, calls = zoo.build(name)
    original = copy.deepcopy(model)
    rewrite_(model, calls[0])
    call(model, calls[0]), call(model, calls[2])
    return freeze_(model, calls[0]), original, calls[:2]


class Output(torch.nn.Module):
    """The first output only, as a plain tensor, of positional inputs."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, one, two=None):
        out = call(self.model, dict(zip(self.names, (one, two), strict=False)))
        return first(out)


def first(out):
    return out if isinstance(out, torch.Tensor) else out[0]


def dynamic(inputs):
    """Batch size and length vary."""
    return tuple(dict.fromkeys(range(2), torch.export.Dim.AUTO) for _ in inputs)


@pytest.mark.parametrize("name", NAMES)
def test_equal_for_other_sizes(name):
    model, original, calls = frozen(name)
    for inputs in calls:
        with torch.no_grad():
            assert difference(call(model, inputs), call(original, inputs)) < 1e-5
    assert all("guard" not in code(model, path) for path in owners(model))


@pytest.mark.parametrize("name", ["hubert", "wavlm", "bert", "t5-encoder", "nn-transformer-encoder"])
def test_export(name):
    model, original, calls = frozen(name)
    with torch.no_grad():
        program = torch.export.export(
            Output(model, calls[0]), tuple(calls[0].values()), dynamic_shapes=dynamic(calls[0]), strict=False
        )
        for inputs in calls:
            assert difference(program.module()(*inputs.values()), first(call(original, inputs))) < 1e-5


@pytest.mark.parametrize("name", ["hubert", "bert", "nn-transformer-encoder"])
def test_compile_without_graph_breaks(name):
    model, original, calls = frozen(name)
    compiled = torch.compile(Output(model, calls[0]), backend="eager", dynamic=True, fullgraph=True)
    with torch.no_grad():
        for inputs in calls:
            assert difference(compiled(*inputs.values()), first(call(original, inputs))) < 1e-5


@pytest.mark.parametrize("name", ["bert", "hubert"])
def test_onnx(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, original, calls = frozen(name)
    file = tmp_path / "model.onnx"
    with torch.no_grad():
        inputs = tuple(calls[0].values())
        shapes = dynamic(calls[0])
        torch.onnx.export(
            Output(model, calls[0]), inputs, file, dynamo=True, dynamic_shapes=shapes, optimize=False, verbose=False
        )
    session = runtime.InferenceSession(file)
    for inputs in calls:
        feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs.values(), strict=True)}
        with torch.no_grad():
            assert difference(torch.from_numpy(session.run(None, feed)[0]), first(call(original, inputs))) < 1e-4


def test_another_kind_of_call_is_refused():
    model, _, calls = frozen("bert")
    with pytest.raises(CaptureError, match="frozen for calls of another kind"):
        model.get_submodule("encoder.layer.0.attention.self")(torch.randn(1, 3, 16))


def test_two_graphs_in_one_run():
    class Twice(torch.nn.Module):
        def forward(self, x):
            return x @ x.mT

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = Twice()

        def forward(self, x):
            return self.twice(x) + self.twice(x[None])[0]

    model, x = Model(), torch.randn(3, 3)
    rewrite_(model, x, lambda site: Child(site.kind))
    expected = model(x)
    freeze_(model, x)
    assert torch.equal(model(x), expected)
