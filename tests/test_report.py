"""What the report says about owners that fell back or went back to float, then and later."""

import json
import warnings

import pytest
import torch
from test_plan import Stack
from torch import nn

import bitquant
from bitquant import plan


class Product(nn.Module):
    """x x^T x; `odd`: neither a graph nor interception computes what it does."""

    def __init__(self, odd):
        super().__init__()
        self.odd = odd

    def forward(self, x):
        scores = x @ x.mT
        if self.odd:
            self.seen = x.shape
            scores = scores + len(torch.overrides._get_current_function_mode_stack())
        return scores @ x


class Mixes(nn.Module):
    def __init__(self, odd=False):
        super().__init__()
        self.inner, self.product, self.out = nn.Linear(16, 16), Product(odd), nn.Linear(16, 16)

    def forward(self, x):
        return self.out(self.product(self.inner(x)))


def quantized(odd=False):
    torch.manual_seed(0)
    model, x = Stack(Mixes(odd), Mixes(odd)).eval(), torch.randn(2, 5, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bitquant.quantize_(model, None, x)
    return model, {row.path: row for row in bitquant.report(model).rows}


def test_a_configuration_beforehand():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(2, 8)
    config = bitquant.QuantConfig(rules={"1": None, "0": {}, "2": {}})
    before = bitquant.report(model, x, config)
    assert {row.path: row.binarized for row in before.rows} == {"0": True, "1": False, "2": True}
    bitquant.quantize_(model, config, x)
    assert [row.path for row in bitquant.report(model).left_in_float] == ["1"]
    with pytest.raises(ValueError, match="this model is quantized: its report is of the configuration"):
        bitquant.report(model, config=config)


def test_an_owner_that_cannot_be_rewritten():
    model, rows = quantized(odd=True)
    row = rows["layers.0.product.bit_matmul_0"]
    assert row.reason == plan.DIFFERS and "differs" in row.note and row.activation_bits == 32 and not row.binarized
    assert rows["layers.0.inner"].binarized
    text = str(bitquant.report(model))
    assert plan.DIFFERS in text and "differs" in text


def test_an_owner_without_a_graph_is_named_and_binarized():
    model, rows = quantized()
    assert rows["layers.0.product.bit_matmul_0"].traced == "fx" and rows["layers.0.product.bit_matmul_0"].note is None
    capture = model.layers[0].product._capture
    capture.path, capture.reason = "fall-back", "a call of another kind"
    row = next(row for row in bitquant.report(model).rows if row.path == "layers.0.product.bit_matmul_0")
    assert row.binarized and (row.traced, row.note) == ("fall-back", "a call of another kind")


def test_an_owner_that_goes_back_to_float_later():
    model, _ = quantized()
    before = bitquant.report(model).share_binarized
    capture = model.layers[0].product._capture
    capture.path, capture.reason = "float", "neither path is right"
    report = bitquant.report(model)
    row = next(row for row in report.rows if row.path == "layers.0.product.bit_matmul_0")
    assert (row.reason, row.note, row.traced) == (plan.DIFFERS, "neither path is right", None)
    assert report.share_binarized < before
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["note"] == "neither path is right"


def test_a_forward_replaced_on_the_instance():
    model = Stack(Mixes(), Mixes()).eval()
    forward = model.layers[0].product.forward
    model.layers[0].product.forward = lambda x: forward(x)
    report = bitquant.report(model, torch.randn(2, 5, 16))
    row = next(row for row in report.rows if row.path == "layers.0.product.bit_matmul_0")
    assert row.reason == plan.UNREACHED and "replaced on the instance" in row.note


def test_only_students_change_their_widths():
    from bitquant.widths import Widths, set_widths_

    model, _ = quantized()
    bitquant.convert_(model)
    bits = [(row.weight_bits, row.activation_bits) for row in bitquant.report(model).rows]
    with pytest.raises(ValueError, match="packed"):
        set_widths_(model, Widths(1, 8))
    assert [(row.weight_bits, row.activation_bits) for row in bitquant.report(model).rows] == bits
    with pytest.raises(ValueError, match="packed"):
        bitquant.distill(model, Stack(Mixes(), Mixes()), [torch.randn(2, 5, 16)], steps=1)
    with pytest.raises(ValueError, match="converted already"):
        bitquant.convert_(model)


def test_float_weights_are_not_packed():
    model = Stack(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    config = bitquant.QuantConfig.preset("bit-plus", weight_bits=32, activation_bits=8)
    bitquant.quantize_(model.eval(), config, torch.randn(2, 3, 8))
    with pytest.raises(ValueError, match="nothing to pack.*w32a8"):
        bitquant.convert_(model)
