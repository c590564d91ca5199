"""A bound product is the op, and notices when what it is bound to is no longer there."""

import copy
import io

import pytest
import torch

from bitquant import ops
from bitquant.ops import library, native
from bitquant.packed import PackedLinear

pytestmark = pytest.mark.skipif(library.unavailable_reason() is not None, reason=str(library.unavailable_reason()))
LINEAR = torch.ops.bitquant.binary_linear.default


@pytest.fixture
def layer(random):
    layer = PackedLinear(70, 20, bits=1, signed=True, bias=True, scales=20)
    layer.lanes.copy_(random.weight(20, 70)[1])
    for tensor in (layer.offset, layer.scale, layer.bias):
        tensor.copy_(random.floats(*tensor.shape))
    return layer


def by_op(layer, x):
    """The product through torch's dispatcher."""
    return LINEAR(x, layer.offset, not layer.signed, layer.lanes, layer.rows, layer.scale, layer.bias)


@pytest.fixture
def bound(layer, random, monkeypatch):
    """The layer, bound; the list grows with every product that did not take the long way."""
    calls, multiply = [], native.multiply
    monkeypatch.setattr(native, "multiply", lambda *args: (calls.append(args), multiply(*args)))
    monkeypatch.setattr(native, "binary_linear", lambda x, *args: (calls.clear(), x.new_zeros(*x.shape[:-1], 20))[1])
    layer(random.floats(1, 70))
    assert len(calls) == 1
    return layer, calls


@pytest.mark.parametrize("shape", [(70,), (1, 70), (3, 70), (2, 3, 70), (0, 70), (2, 0, 70)], ids=str)
def test_equal_to_the_op(layer, random, shape):
    for x in (random.floats(*shape), random.floats(*shape)):
        assert torch.equal(layer(x), by_op(layer, x))


def test_changes_are_noticed(layer, random):
    x = random.floats(3, 70)
    before = layer(x)

    def changed():
        out = layer(x)
        assert torch.equal(out, by_op(layer, x))
        return not torch.equal(out, before)

    layer.bias.add_(1)
    assert changed()
    layer.bias = layer.bias - 2
    assert changed()
    layer.bias.data = layer.bias + 3
    assert changed()
    layer.scale = torch.full((1,), 0.5)
    assert changed()
    layer.bias = None
    assert changed()
    layer.scale = torch.ones(40)[::2]
    assert changed()
    layer.scale = torch.ones(20)
    assert changed()
    layer.offset.set_(torch.full((1,), 9.0))
    assert changed()
    layer.lanes = layer.lanes[:1]
    with pytest.raises(ValueError, match="need int32 lanes"):
        layer(x)


def test_a_part_at_the_same_address_is_noticed(layer, random):
    x = random.floats(3, 70)
    layer(x)
    layer.scale = layer.scale[:1]
    assert torch.equal(layer(x), by_op(layer, x))
    layer.bias = layer.bias[:5]
    with pytest.raises(ValueError, match="bias must be"):
        layer(x)


def test_copies_stand_alone(layer, random):
    x = random.floats(3, 70)
    before = layer(x)
    twin, file = copy.deepcopy(layer), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    layer.bias.add_(1)
    layer.lanes.zero_()
    assert torch.equal(twin(x), before) and torch.equal(loaded(x), before)
    assert not torch.equal(layer(x), before)


def test_what_goes_the_short_way(bound, random):
    layer, calls = bound
    for x in (random.floats(5, 70), random.floats(2, 2, 70)):
        layer(x)
    with torch.inference_mode():
        layer(random.floats(1, 70))
    assert len(calls) == 4


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, 70, dtype=torch.float16),
        torch.ones(70, 2).T,
        torch.ones(2, 70, requires_grad=True),
        torch.nn.Parameter(torch.ones(2, 70)),
        torch._neg_view(torch.ones(2, 70)),
    ],
    ids=["half", "strided", "gradient", "parameter", "negative"],
)
def test_what_goes_through_the_op(bound, x):
    layer, calls = bound
    layer(x)
    assert not calls


def test_the_backend_asked_for_runs(layer, bound, random):
    x = random.floats(2, 70)
    with ops.use_backend("naive"):
        layer(x)
    assert len(bound[1]) == 1


def test_what_the_op_refuses_is_refused(layer, random):
    layer(random.floats(2, 70))
    with pytest.raises(ValueError, match="threshold must be float32 \\[71\\] or \\[1\\]"):
        layer(random.floats(2, 71))
    with pytest.raises(ValueError, match="1 to 2\\^24 - 1 features"):
        layer(torch.zeros(()))
    with pytest.raises(ValueError, match="NaN"):
        layer(torch.full((2, 70), torch.nan))


def test_compiled_and_exported_graphs_hold_the_op(layer, random):
    x = random.floats(4, 70)
    expected, seen = layer(x), []

    def backend(module, inputs):
        seen.extend(node.target for node in module.graph.nodes)
        return module.forward

    assert torch.equal(torch.compile(layer, backend=backend, fullgraph=True)(x), expected)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2)}})
    assert LINEAR in seen and LINEAR in [node.target for node in program.graph.nodes]
    wider = random.floats(9, 70)
    assert torch.equal(program.module()(wider), layer(wider))
