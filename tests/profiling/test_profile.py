"""bitquant.profile on models small enough to count by hand."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitquant
from bitquant.profiling import CONSISTENT, Convention, Device, profile
from bitquant.profiling.convention import Count


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.attention = Attention(dim, heads)
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x, mask=None):
        x = x + self.attention(x, mask)
        return self.norm(x + self.fc2(self.act(self.fc1(x))))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, d))


class Encoder(nn.Module):
    """dim 16, 4 heads, 2 layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 16)
        self.layers = nn.ModuleList(Block(16, 4) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x, mask=None):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


T = 10
LINEAR = 2 * (16 * 48 + 16 * 16 + 2 * 16 * 32)  # weights of both layers
PRODUCT = 2 * 2 * T * T * 16  # multiply-accumulates of both products in both layers
OUTSIDE = T * (5 * 16 + 16 * 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def x():
    return torch.randn(1, T, 5)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_profile_is_a_function_and_leaves_the_model_alone(model, x):
    before = copy.deepcopy(model.state_dict())
    assert bitquant.profile is profile
    model.train()
    bitquant.profile(model, x)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_float_model_by_hand(model, x):
    total = profile(model, x).total
    macs = T * LINEAR + PRODUCT + OUTSIDE
    assert total.parameters == count(model)
    assert total.storage_bytes == 4 * count(model)
    assert (total.macs, total.flops, total.bops) == (macs, 2 * macs, 32 * 32 * macs)
    assert total.quantized_macs == total.quantized_bops == 0
    assert total.seconds == pytest.approx(2 * macs / 19.5e12)


@pytest.mark.parametrize(
    ("weight", "activation", "peak"), [(1, 1, 4992e12), (1, 2, 1248e12), (4, 4, 1248e12), (8, 8, 624e12)]
)
def test_any_width_by_hand(model, x, weight, activation, peak):
    found = profile(model, x, weight_bits=weight, activation_bits=activation)
    total = found.total
    assert total.macs == OUTSIDE
    assert total.quantized_macs == T * LINEAR + PRODUCT
    assert total.quantized_bops == weight * activation * T * LINEAR + activation**2 * PRODUCT
    shifts = 2 * 3 * 16
    assert total.parameters == count(model) + shifts
    assert total.storage_bytes == 4 * (count(model) + shifts - LINEAR) + LINEAR * weight / 8
    products = 2 * PRODUCT / Device("", {1: 4992e12, 4: 1248e12, 8: 624e12}).rate(activation)
    assert total.seconds == pytest.approx(2 * OUTSIDE / 19.5e12 + 2 * T * LINEAR / peak + products)


def test_both_products_of_attention_are_rows(model, x):
    rows = {layer.path: layer for layer in profile(model, x).layers}
    owner = "layers.0.attention.bit_attention_0"
    assert rows[f"{owner}.qk"].macs == rows[f"{owner}.pv"].macs == T * T * 16
    assert f"{owner}.softmax" not in rows  # nothing is counted there
    assert rows["layers.0.attention.qkv"].component == "projection"
    assert rows["layers.0.fc1"].component == "feed-forward"
    assert rows["stem"].component == rows["head"].component == "outside the encoder's layers"


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
def test_groups_add_up(model, x, depth):
    found = profile(model, x, weight_bits=1, activation_bits=1)
    grouped, total = found.by_depth(depth), found.total
    for name in ("parameters", "storage_bytes", "flops", "quantized_macs", "seconds"):
        assert sum(getattr(row, name) for row in grouped) == pytest.approx(getattr(total, name))
        assert sum(getattr(row, name) for row in found.by_component()) == pytest.approx(getattr(total, name))
    if depth == 1:
        assert [row.path for row in grouped] == ["stem", "layers", "head"]


def test_ideal_attention_counts_the_pairs_of_the_mask(model, x):
    mask = torch.ones(T, T, dtype=torch.bool).tril()
    dense = profile(model, (x, mask)).total.macs
    ideal = profile(model, (x, mask), convention=Convention("sparse", attention="ideal", counts=CONSISTENT.counts))
    assert dense - ideal.total.macs == pytest.approx(PRODUCT * (1 - (T + 1) / (2 * T)))


def test_a_convention_of_your_own(model, x):
    own = Convention("half", float_bytes=2, counts={**CONSISTENT.counts, ("attention", "product"): Count(3.0)})
    total = profile(model, x, convention=own).total
    assert total.storage_bytes == 2 * count(model)
    assert total.macs == T * LINEAR + 3 * PRODUCT + OUTSIDE


def test_parameters_that_do_not_count(model, x):
    without = profile(model, x, not_stored=(r"head\..*",)).total
    assert without.parameters == count(model) - 3 * 17


def test_packed_model_computes_what_was_planned(model, x):
    planned = profile(model, x, weight_bits=1, activation_bits=1).total
    float_bytes = 4 * count(model)
    bitquant.quantize_(model, "bit-plus", x)
    student = profile(model, x).total
    bitquant.convert_(model)
    packed = profile(model, x).total
    for found in (student, packed):
        assert (found.flops, found.quantized_macs, found.quantized_bops) == (
            planned.flops, planned.quantized_macs, planned.quantized_bops)  # fmt: skip
        assert (found.weight_bits, found.activation_bits) == (1, 1)
    stored = sum(t.nbytes for name, t in model.state_dict().items())
    assert packed.storage_bytes == stored
    assert LINEAR / 8 < packed.storage_bytes < float_bytes


def test_float_paths_as_planned(model, x):
    plain, config = (bitquant.QuantConfig.preset("bit-plus", low_rank=rank) for rank in (0, 4))
    planned = [profile(model, x, weight_bits=1, activation_bits=1, config=each).total for each in (plain, config)]
    found = []
    for each in (plain, config):
        packed = copy.deepcopy(model)
        bitquant.quantize_(packed, each, x)
        bitquant.convert_(packed)
        found.append(profile(packed, x).total)
    vectors = 2 * (16 + 48 + 16 + 16 + 16 + 32 + 32 + 16)  # inputs and outputs of the linear layers
    for one, other in (planned, found):
        assert other.macs - one.macs == x.shape[0] * T * 4 * (vectors + 2 * (16 + 16 + 16 + 32))
        assert other.parameters - one.parameters == 4 * vectors
        assert other.storage_bytes - one.storage_bytes == 2 * 4 * vectors
        assert other.quantized_macs == one.quantized_macs


def test_tied_weights_are_stored_once(x):
    model = Encoder().eval()
    model.layers[1].fc1.weight = model.layers[0].fc1.weight
    assert profile(model, x).total.storage_bytes == 4 * count(model)


def test_models_without_memory(x):
    with torch.device("meta"):
        model = Encoder().eval()
    assert profile(model, x.to("meta")).total.macs == T * LINEAR + PRODUCT + OUTSIDE


def test_json_and_text(model, x):
    found = profile(model, x, convention="paper")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["convention"] == "paper" and data["fitted"] and data["device"] == "A100"
    assert data["total"]["parameters"] == count(model)
    text = str(found)
    assert "layers.0.fc1" in text and "not measured" in text and "without a known reason" in text


def test_bad_arguments_are_refused(model, x):
    with pytest.raises(ValueError, match="unknown convention 'metric'; known: consistent, paper"):
        profile(model, x, convention="metric")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        profile(model, x, device="abacus")
    with pytest.raises(ValueError, match="both weight_bits and activation_bits"):
        profile(model, x, weight_bits=1)
    with pytest.raises(ValueError, match="between 1 and 32 bits"):
        profile(model, x, weight_bits=0, activation_bits=1)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        profile(model, x).by_depth(0)
    with pytest.raises(ValueError, match="attention must be one of"):
        Convention("odd", attention="sparse")
    bitquant.quantize_(model, "bit-plus", x)
    with pytest.raises(ValueError, match="profiled at its own widths"):
        profile(model, x, weight_bits=1, activation_bits=1)
