"""LoRA before quantize_: merge first; the report says so, and nothing of it is binarized."""

import pytest
import torch
from torch import nn

import bitquant
from bitquant import plan


class Peft(nn.Module):
    """A layer with an adapter beside it, in the form the peft package gives it."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.merged = base, False
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    weight = property(lambda self: self.base_layer.weight)

    def forward(self, x):
        out = self.base_layer(x)
        return out if self.merged else out + self.lora_B["default"](self.lora_A["default"](x))


class Parameters(nn.Linear):
    """The same in two parameters of the layer itself, as others write it."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features)
        self.lora_A = nn.Parameter(torch.randn(2, base.in_features))
        self.lora_B = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


def encoder(kind):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(kind(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 16)) for _ in range(2))
    ).eval()


@pytest.fixture
def x():
    return torch.randn(2, 16)


@pytest.mark.parametrize("kind", [Peft, Parameters])
def test_merge_first(kind, x):
    model = encoder(kind)
    with pytest.raises(ValueError, match=r"^0\.0 holds an adapter \(LoRA\) beside its layer: merge it into the weight"):
        bitquant.quantize_(model, None, x)
    assert type(model[0][2]) is nn.Linear
    report = bitquant.report(model, x)
    adapted = {row.reason for row in report.rows if row.path.startswith(("0.0", "1.0"))}
    assert adapted == {plan.ADAPTER} and {row.path: row.reason for row in report.rows}["0.2"] is None
    assert bitquant.profile(model, x, weight_bits=1, activation_bits=1).total.macs > 0


def test_adapters_that_stay_float_anyway(x):
    model = encoder(Peft)
    config = bitquant.QuantConfig.preset("bit-plus", modules_to_not_convert=["0.0", "1.0"])
    bitquant.quantize_(model, config, x)
    assert bitquant.report(model).share_quantized > 0


def test_merged_adapters(x):
    model = encoder(Peft)
    model[0][0].merged = model[1][0].merged = True
    bitquant.quantize_(model, None, x)
    reasons = {row.path: row.reason for row in bitquant.report(model).rows}
    assert reasons["0.0.base_layer"] is None and reasons["0.0.lora_A.default"] == plan.UNSEEN


def test_adapters_around_quantized_layers(x):
    model = encoder(lambda base: base)
    bitquant.quantize_(model, None, x)
    before = bitquant.report(model).to_dict()
    model[0][0] = Peft(model[0][0])
    assert bitquant.report(model).to_dict() == before


def test_peft(x):
    peft = pytest.importorskip("peft")
    model = encoder(lambda base: base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0.0", "1.0"], init_lora_weights=False))
    with pytest.raises(ValueError, match="holds an adapter"):
        bitquant.quantize_(adapted, None, x)
    merged = adapted.merge_and_unload()
    bitquant.quantize_(merged, None, x)
    assert bitquant.report(merged).share_quantized == 1.0
