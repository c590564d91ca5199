"""What discovery says about products: roles, signs, owners, macs, errors."""

import copy

import encoder_zoo as zoo
import pytest
import torch
import torch.nn.functional as F
from identity import Child, rewrite_
from torch import nn

from bitquant.capture import CaptureError, discover, wrap_owners_


def _sites(discovery, **wanted):
    return [s for s in discovery.sites if all(getattr(s, k) == v for k, v in wanted.items())]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "example_inputs are missing"),
        ("text", "not str"),
        (torch.zeros(2, 5), "does not run on example_inputs: RuntimeError"),
        ({"y": torch.zeros(2, 3)}, "does not run on example_inputs: TypeError"),
    ],
)
def test_errors(inputs, message):
    with pytest.raises(CaptureError, match=message):
        discover(nn.Sequential(nn.Linear(3, 3)), inputs)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_forms_of_example_inputs(wrap):
    discovery = discover(nn.Sequential(nn.Linear(3, 4)), wrap(torch.zeros(2, 3)))
    assert [(s.path, s.kind, s.role, s.macs) for s in discovery.sites] == [("0", "linear", "weight", 24)]


def test_leaves_the_model_as_it_was():
    model = nn.Sequential(
        nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2)
    ).train()
    model[2].eval()
    x = torch.randn(2, 4, 6)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    discover(model, x)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model] == [True, True, False, True, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_signs_cross_modules():
    model, calls = zoo.build("bert")
    relu, _ = zoo.build("bert", hidden_act="relu")
    path = "encoder.layer.0.output.dense"
    assert _sites(discover(model, calls[0]), path=path)[0].nonnegative == (False, False)
    assert _sites(discover(relu, calls[0]), path=path)[0].nonnegative == (True, False)


def test_signs_of_weights_and_in_place_operations():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = F.max_pool1d(F.relu_(self.a(x)), 1)
            y = self.b(x.transpose(0, 1).reshape(-1, 4))
            return self.c(x.sub_(1.0)) + y.sum()

    discovery = discover(Model(), torch.randn(3, 4))
    assert [s.nonnegative[0] for s in discovery.sites] == [False, True, False]


@pytest.mark.parametrize(
    ("function", "nonnegative"),
    [
        (lambda x: F.relu(x) * 0.5 + 1, True),
        (lambda x: F.relu(x) * -0.5, False),
        (lambda x: F.relu(x) - 1, False),
        (lambda x: x.sigmoid().masked_fill(x > 0, 0.0), True),
        (lambda x: x.sigmoid().masked_fill(x > 0, -1.0), False),
        (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), False),
        (lambda x: x.relu().clamp(max=-1.0), False),
        (lambda x: x.clamp(min=0.0), True),
        (lambda x: F.dropout(x.softmax(-1)).flip(0)[:, :3].repeat(1, 2)[:, :4], True),
        (lambda x: torch.cat([x.relu(), x.exp()], 0)[:3], True),
        (lambda x: torch.cat([x.relu(), x], 0)[:3], False),
        (lambda x: x**2, True),
        (lambda x: x**3, False),
        (lambda x: F.pad(x.abs(), (1, -1), value=-1.0), False),
        (lambda x: F.gelu(x), False),
        (lambda x: F.layer_norm(x.relu(), (4,)), False),
    ],
)
def test_sign(function, nonnegative):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(function(x))

    (site,) = discover(Model(), torch.randn(3, 4)).sites
    assert site.nonnegative == (nonnegative, False)


def test_attention_is_one_site_with_a_plain_mask_and_two_with_a_bias():
    model, calls = zoo.build("deberta-v2")
    roles = [s.role for s in discover(model, calls[0]).sites if s.owner == "encoder.layer.0.attention.self" and s.name]
    assert roles == ["qk", "relative-position", "relative-position", "pv"]
    for name in ("bert", "bert-eager"):
        model, calls = zoo.build(name)
        (first, second) = _sites(discover(model, calls[0]), kind="attention")
        assert first.path == "encoder.layer.0.attention.self.bit_attention_0" and not first.score_bias
        assert first.shapes == ((2, 4, 13, 4),) * 3 and first.macs == 2 * 2 * 4 * 13 * 13 * 4


def test_score_bias_of_sdpa():
    model, calls = zoo.build("swin")
    assert all(s.score_bias for s in _sites(discover(model, calls[0]), kind="attention"))
    model, calls = zoo.build("nn-transformer-encoder")
    assert not any(s.score_bias for s in _sites(discover(model, calls[0]), kind="attention"))


def test_a_zero_bias_that_can_be_learned_is_a_bias():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(5, 5))

        def forward(self, x):
            return (x @ x.mT + self.bias).softmax(-1) @ x

    assert [s.role for s in discover(Model(), torch.randn(2, 5, 4)).sites] == ["qk", "pv"]


def test_parameters_and_shared_inputs():
    model, calls = zoo.build("nn-transformer-encoder")
    discovery = discover(model, calls[0])
    packed, out = _sites(discovery, owner="encoder.layers.0.self_attn", kind="linear_fn")
    assert packed.role == out.role == "parameter"
    assert packed.parameters == (None, "encoder.layers.0.self_attn.in_proj_weight")
    assert out.parameters == (None, "encoder.layers.0.self_attn.out_proj.weight")
    assert "out_proj" in next(iter(discovery.never_called)) and "bit_linear_fn_1" in str(discovery.never_called)
    model, calls = zoo.build("bert")
    discovery = discover(model, calls[0])
    query = "encoder.layer.0.attention.self.query"
    assert [s.path.rpartition(".")[2] for s in _sites(discovery, shares_input=query)] == ["key", "value"]


def test_shared_modules_are_one_site():
    model, calls = zoo.build("albert")
    (site,) = _sites(discover(model, calls[0]), kind="attention")
    assert site.calls == 2


def test_products_out_of_reach_are_named():
    class Model(nn.Sequential):
        def forward(self, x):
            return torch.tensordot(self[0](x), x, dims=([1], [1])) @ self[1](x)[0]

    model = Model(nn.Linear(4, 4), nn.LSTM(4, 4))
    discovery = discover(model, torch.randn(3, 4))
    reasons = {s.kind: s.reason for s in discovery.sites if not s.functional and s.traced is None}
    assert set(reasons) >= {"tensordot"} and discovery.seen_macs < discovery.total_macs
    assert discovery.total_macs == sum(s.macs for s in discovery.sites)
    assert not wrap_owners_(model, discovery, lambda site: Child(site.kind), torch.randn(3, 4))


def test_own_forward_of_a_derived_linear():
    class LoRA(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

        def forward(self, x):
            return super().forward(x) + x @ self.a.T @ self.b.T

    model = nn.Sequential(LoRA(), nn.ReLU())
    x = torch.randn(3, 4)
    expected = model(x)
    discovery = rewrite_(model, x)
    assert [(s.path, s.role) for s in discovery.sites] == [
        ("0.bit_linear_fn_0", "parameter"),
        ("0.bit_matmul_0", "parameter"),
        ("0.bit_matmul_1", "parameter"),
    ]
    assert torch.allclose(model(x), expected)


def test_a_rewritten_model_is_refused():
    model, calls = zoo.build("bert")
    rewrite_(model, calls[0])
    with pytest.raises(CaptureError, match="rewritten already"):
        discover(model, calls[0])


def test_forward_replaced_on_the_instance():
    model = nn.Sequential(nn.Linear(4, 4))
    forward = model[0].forward
    model[0].forward = lambda x: forward(x)
    (site,) = discover(model, torch.randn(2, 4)).sites
    assert site.traced is None and "replaced on the instance" in site.reason
