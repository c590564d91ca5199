import copy

import pytest
import torch
from test_quantize import Encoder
from torch import nn

import bitquant
from bitquant.widths import Widths, parse_chain, parse_widths, set_widths_, widths_of

ALL = ["w1a1", "w1a2", "w1a4", "w1a8", "w1a32", "w32a8", "w32a32"]


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(2, 7, 5)


def student(x, **widths):
    torch.manual_seed(1)
    model = Encoder().eval()
    reference = copy.deepcopy(model)
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", **widths), x)
    return model, reference


def test_parse():
    assert parse_widths(" W1A8 ") == Widths(1, 8) and str(Widths(1, 8)) == "w1a8"
    assert parse_chain("w1a8,w1a1") == [Widths(1, 8), Widths(1, 1)]
    assert parse_chain("bit") == [Widths(1, 2), Widths(1, 1)]
    for wrong in ("a8", "w2a8", "w1a3", "w1a8;w1a1", ""):
        with pytest.raises(ValueError, match="is no width"):
            parse_chain(wrong)


def test_32_bits_are_the_float_model(x):
    model, reference = student(x, weight_bits=32, activation_bits=32)
    torch.testing.assert_close(model(x), reference(x))
    assert bitquant.report(model).share_binarized == 0


def test_wider_is_closer(x):
    errors = []
    for bits in (1, 2, 4, 8, 32):
        model, reference = student(x, weight_bits=32, activation_bits=bits)
        errors.append((model(x) - reference(x)).square().mean().item())
    assert errors[0] > errors[2] > errors[3] > errors[4]


@pytest.mark.parametrize("text", ALL)
def test_every_width_trains_and_packs_to_the_same_bits(x, text):
    widths = parse_widths(text)
    model, teacher = student(x, weight_bits=widths.weight_bits, activation_bits=widths.activation_bits)
    bitquant.distill(model, teacher, [x], steps=2)
    for length in (1, 7, 63):
        probe = torch.randn(2, length, 5)
        trained = model(probe).detach()
        with torch.no_grad():
            evaluated = model(probe)
        assert torch.equal(trained, evaluated)
        if widths.weight_bits == 1:
            packed = copy.deepcopy(model)
            bitquant.convert_(packed)
            assert torch.equal(packed(probe), evaluated)


def test_changing_widths_in_place(x):
    model, _ = student(x, activation_bits=8, rules={"layers.0.up": {"activation_bits": 4}})
    set_widths_(model, Widths(1, 1))
    assert widths_of(model) == Widths(1, 1)
    assert model.layers[0].qkv.input_quantizer.bits == 1 and model.layers[0].up.input_quantizer.bits == 4
    rows = {row.path: row for row in bitquant.report(model).rows}
    assert rows["layers.0.qkv"].binarized and not rows["layers.0.up"].binarized
    assert rows["layers.0.bit_attention_0"].activation_bits == 1
    model(x).sum().backward()
    bitquant.convert_(model)


def test_chain_ends_at_the_last_width(x):
    model, teacher = student(x)
    stages = []
    bitquant.distill(model, teacher, [x], steps=2, chain="w1a8,w1a2,w1a1", progress=lambda s: stages.append(s["stage"]))
    assert stages == ["w1a8"] * 2 + ["w1a2"] * 2 + ["w1a1"] * 2
    assert widths_of(model) == Widths(1, 1)
    assert all(m.bits == 1 for m in model.modules() if hasattr(m, "observed"))


def test_inherited_scales(x):
    model, teacher = student(x, activation_bits=2)
    alpha = model.layers[0].qkv.input_quantizer.alpha.item()
    set_widths_(model, Widths(1, 1))
    assert model.layers[0].qkv.input_quantizer.alpha.item() == alpha


def test_float_embedding_at_32_bits():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    ids = torch.arange(9).view(3, 3)
    expected = model(ids)
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", weight_bits=32, activation_bits=32), ids)
    torch.testing.assert_close(model(ids), expected)
