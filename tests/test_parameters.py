"""Products that use a parameter of the caller: who else reads it, in which form, and what is left once it is packed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitquant
from bitquant.capture import StandIn
from bitquant.plan import DIFFERS, PARAMETER, TIED

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(14).view(2, 7)


class Layer(nn.Module):
    """A product that a test writes, as ``product(layer, x, *more)``, then two linear layers."""

    def __init__(self, product, shape=(16, 16)):
        super().__init__()
        self.product = product
        self.w, self.w2 = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, *more):
        return self.b(self.a(self.product(self, x, *more)))


class Stack(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, *more):
        for layer in self.layers:
            x = layer(x, *more)
        return x


def stack(product, shape=(16, 16)):
    torch.manual_seed(0)
    return Stack(Layer(product, shape), Layer(product, shape)).eval()


def student_and_packed(model, inputs=X):
    """A student in eval mode and its packed copy, which give the same on the example inputs."""
    bitquant.quantize_(model, None, inputs)
    student = model.eval()
    packed = copy.deepcopy(student)
    bitquant.convert_(packed)
    call = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        assert torch.equal(packed(*call), student(*call))
    return student, packed


def reasons(model):
    return {row.path: row.reason for row in bitquant.report(model).rows}


class Words(nn.Module):
    """An embedding whose table is the task head too, without a module for it."""

    def __init__(self, head):
        super().__init__()
        self.e, self.head = nn.Embedding(20, 16), head
        self.layers = nn.ModuleList(Layer(lambda layer, x: x) for _ in range(2))

    def forward(self, ids):
        x = self.e(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x, self.e.weight)


@pytest.mark.parametrize("head", [F.linear, lambda x, w: x @ w.T], ids=["linear", "matmul"])
def test_embedding_tied_to_a_functional_head_stays_float(head):
    student, _ = student_and_packed(Words(head).eval(), IDS)
    assert reasons(student)["e"] == TIED and isinstance(student.e, nn.Embedding)


def test_a_weight_read_by_any_other_function_stays_float():
    student, packed = student_and_packed(
        stack(lambda layer, x: F.linear(x, layer.w) * layer.w.norm() + layer.a.weight[0])
    )
    found = reasons(student)
    assert found["layers.0.bit_linear_fn_0"] == found["layers.0.a"] == TIED and found["layers.0.b"] is None
    assert "layers.0.w" in packed.state_dict()


def test_asking_for_shape_and_dtype_is_no_use():
    def product(layer, x):
        assert layer.w.device.type == "cpu"
        return F.linear(x.to(layer.w.dtype).view(*x.shape[:-1], layer.w.shape[1]), layer.w)

    student, packed = student_and_packed(stack(product))
    assert set(reasons(student).values()) == {None}
    assert packed.layers[0].w.dtype == torch.float32 and packed.layers[0].w.shape == (16, 16)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("w", lambda layer, x: F.linear(torch.tanh(F.linear(x, layer.w)), layer.w)),
        ("a.weight", lambda layer, x: F.linear(torch.tanh(layer.a(x)), layer.a.weight)),
        ("a.weight", lambda layer, x: F.linear(torch.tanh(layer.a(x)), layer.a.weight.t())),
        ("w", lambda layer, x: F.linear(x, layer.w) @ layer.w),
    ],
    ids=["two calls", "module and call", "module and transposed call", "linear and matmul"],
)
def test_one_weight_in_two_binarized_products(name, product, tmp_path):
    model = stack(product)
    student, packed = student_and_packed(copy.deepcopy(model))
    assert set(reasons(student).values()) == {None}
    assert f"layers.0.{name}" not in packed.state_dict()
    bitquant.save(packed, tmp_path / "packed")
    with torch.no_grad():
        assert torch.equal(bitquant.load(tmp_path / "packed", model=model)(X), student(X))


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (lambda layer, x: F.linear(x, layer.w.t()), (16, 16)),
        (lambda layer, x: x @ layer.w, (16, 16)),
        (lambda layer, x: x @ layer.w.mT, (16, 16)),
        (lambda layer, x: (x @ layer.w)[..., :16], (16, 24)),
        (lambda layer, x: torch.addmm(layer.a.bias, x.flatten(0, 1), layer.w).view(x.shape), (16, 16)),
        (lambda layer, x: torch.einsum("ti,io->to", x.flatten(0, 1), layer.w).view(x.shape), (16, 16)),
    ],
    ids=["linear of transposed", "matmul", "matmul of transposed", "not square", "addmm", "einsum"],
)
def test_every_form_of_a_product_with_a_matrix(product, shape):
    model = stack(product, shape)
    student, packed = student_and_packed(copy.deepcopy(model))
    (name,) = student.layers[0]._capture.children
    assert set(reasons(student).values()) == {None} and "layers.0.w" not in packed.state_dict()
    # the signs are those of the operand that was multiplied by
    x = torch.randn(1, 3, 16).sign() * student.layers[0]._modules[name].input_quantizer.alpha.detach()
    state = model.layers[0].state_dict()
    child = student.layers[0]._modules[name]
    weight = state["w"].T if child.transposed else state["w"]
    signs, scale = child.weight_quantizer(weight)
    operand = weight.T if child.matmul else weight
    with torch.no_grad():
        torch.testing.assert_close(child(x, operand), F.linear(x, signs * scale.view(-1, 1)))


@pytest.mark.parametrize(
    "product",
    [
        lambda layer, x: F.linear(x, layer.w[:16]),
        lambda layer, x: x @ layer.w.flip(0)[:16],
        lambda layer, x: torch.matmul(x, layer.w[None, :16]),
    ],
    ids=["rows", "flipped", "batched"],
)
def test_a_part_of_a_parameter_stays_float(product):
    student, packed = student_and_packed(stack(product, (32, 16)))
    (reason,) = {reason for path, reason in reasons(student).items() if "bit_" in path}
    assert reason == PARAMETER and "layers.0.w" in packed.state_dict()


def test_a_child_serves_only_its_own_parameter():
    product = lambda layer, x, second=False: F.linear(x, layer.w2 if second else layer.w)  # noqa: E731
    student, packed = student_and_packed(stack(product), (X,))
    with torch.no_grad(), pytest.warns(UserWarning, match="stays in float"):
        expected = student(X, True)
    with torch.no_grad(), pytest.warns(UserWarning, match="stays in float"):
        assert torch.equal(packed(X, True), expected)
    for layer in student.layers:
        layer.w2.data.neg_()
    with torch.no_grad():
        assert not torch.equal(student(X, True), expected)  # it is the other parameter that was used


class SelfOrCross(nn.Module):
    def __init__(self):
        super().__init__()
        self.m, self.a, self.b = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        return self.b(self.a(x)) + self.m(x, memory, memory)[0]


def test_self_attention_called_as_cross_attention():
    student, packed = student_and_packed(Stack(SelfOrCross(), SelfOrCross()).eval(), (X,))
    memory = torch.randn(2, 9, 16)
    with torch.no_grad(), pytest.warns(UserWarning, match="stays in float"):
        assert student(X, memory).shape == X.shape
    with torch.no_grad(), pytest.raises(RuntimeError, match="packed to bits"):
        packed(X, memory)


def test_a_packed_owner_before_packed_children_traces_again(tmp_path):
    model = stack(lambda layer, x: F.linear(x, layer.w))
    student, packed = student_and_packed(copy.deepcopy(model))
    assert torch.equal(packed(X), student(X))  # with gradients: another kind of call
    bitquant.save(packed, tmp_path / "packed")
    loaded = bitquant.load(tmp_path / "packed", model=model)
    assert torch.equal(loaded(X), student(X)) and loaded.layers[0]._capture.path == "fx"


def test_stand_in():
    weight = StandIn((3, 4), torch.bfloat16, "cpu")
    assert weight.shape == (3, 4) and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    assert weight.t().form == "transposed" and weight.t().T.form == "whole" and weight[:2].form == "part"
    assert weight.float().dtype == torch.float32 and weight.to(torch.float64).form == "whole"
    assert weight.t().key is weight and copy.deepcopy(weight).dtype == torch.bfloat16
    for use in (lambda: weight + 1, lambda: weight.sum(), lambda: F.linear(torch.ones(4), weight), weight.tolist):
        with pytest.raises(RuntimeError, match="packed to bits"):
            use()


class Chain(nn.Module):
    """Runs every child it has, so that none can be added."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x @ x.mT @ x


def test_an_owner_that_does_not_run_with_children_is_taken_back():
    student, _ = student_and_packed(Stack(Chain(), Chain()).eval())
    found = reasons(student)
    assert found["layers.0.bit_matmul_0"] == DIFFERS and found["layers.0.a"] is None
    assert type(student.layers[0]) is Chain and list(student.layers[0]._modules) == ["a", "b"]


class Shared(Chain):
    """A user of a shared weight that fails only once children are added."""

    def forward(self, x):
        return super().forward(F.linear(x, self.a.weight))


def test_a_weight_of_an_owner_that_is_taken_back_stays_float():
    student, _ = student_and_packed(Stack(Shared(), Shared()).eval())
    found = reasons(student)
    assert found["layers.0.bit_linear_fn_0"] == DIFFERS
    assert found["layers.0.a"] == TIED and found["layers.0.b"] is None and type(student.layers[0].a) is nn.Linear


@pytest.mark.parametrize("preset", ["bit-ref", "bit-plus"])
def test_quantize_changes_all_or_nothing(preset):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, activation=nn.GELU(), batch_first=True), 2, enable_nested_tensor=False
    )
    before = [(name, type(module), dict(vars(module))) for name, module in model.named_modules()]
    keys = list(model.state_dict())
    bad = X.clone()
    bad[0, 0, 0] = torch.nan
    with pytest.raises(ValueError):
        bitquant.quantize_(model, preset, bad)
    after = [(name, type(module), dict(vars(module))) for name, module in model.named_modules()]
    assert [a[:2] for a in after] == [b[:2] for b in before] and list(model.state_dict()) == keys
    assert [list(a[2]) for a in after] == [list(b[2]) for b in before]
    bitquant.quantize_(model, preset, X)
    assert bitquant.report(model).share_binarized > 0.9


class Outer(nn.Module):
    """A module with products of its own around one that has them too."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.a, self.b = inner, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = self.inner(self.b(self.a(x)))
        return (h @ h.mT).softmax(-1) @ h


def test_scales_start_from_a_loaded_checkpoint_in_a_nested_owner():
    """Tracing the outer module runs the inner one first, and undoes it."""
    torch.manual_seed(0)
    model, other = (Stack(*(Outer(Layer(lambda layer, x: x @ layer.w)) for _ in range(2))).eval() for _ in range(2))
    other.load_state_dict({name: 7 * value for name, value in other.state_dict().items()})
    bitquant.quantize_(model, None, X)
    model.load_state_dict(other.state_dict())
    model.train()
    model(X)
    for layer in model.layers:
        child = layer.inner.bit_matmul_0
        scale = child.weight_quantizer.scale(layer.inner.w.T)
        torch.testing.assert_close(scale.flatten(), layer.inner.w.T.abs().mean(1))
