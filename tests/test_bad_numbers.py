"""NaN, infinity and nothing at all: one kind of error, before anything is made of them."""

import copy

import pytest
import torch
from test_quantize import Encoder
from torch import nn

import bitquant
from bitquant import QuantConfig

X = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
CONFIGS = [
    "bit-ref",
    "bit-plus",
    QuantConfig(activation_bits=8),
    QuantConfig(activation_bits=32),
    QuantConfig(low_rank=2),
]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.encoder = nn.Embedding(9, 5), Encoder()

    def forward(self, ids):
        return self.encoder(self.words(ids))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv1d(6, 6, 1), nn.Linear(5, 5)
        self.layers = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(5, 1, batch_first=True) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, x, x, need_weights=False)[0]
        return x


def both(model, config="bit-plus", inputs=X):
    torch.manual_seed(0)
    bitquant.quantize_(model, config, inputs)
    packed = copy.deepcopy(model.eval())
    bitquant.convert_(packed)
    return model, packed


@pytest.mark.parametrize("kind", [Encoder, Convolutions, Attention])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_nan_inputs_raise_one_kind_of_error(kind, config):
    forms, bad = both(kind().eval(), config), X.clone()
    bad[1, 2] = float("nan")
    for form in forms:
        for grad in (False, True):
            with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="NaN"):
                form(bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.1.up.weight",
        "encoder.layers.1.up.bias",
        "encoder.layers.1.down.input_quantizer.shift",
        "encoder.layers.1.down.input_quantizer.alpha",
        "words.weight",
    ],
)
@pytest.mark.parametrize("config", ["bit-plus", "bit-ref", QuantConfig(embedding_bits=4)], ids=str)
def test_what_is_not_finite_is_not_packed(name, value, config):
    model, ids = Words().eval(), torch.arange(8).view(2, 4)
    bitquant.quantize_(model, config, ids)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[:1] = value
    with pytest.raises(
        ValueError, match=rf"{name.partition('.input')[0].removesuffix('.weight').removesuffix('.bias')}: "
    ):
        bitquant.convert_(model)


def test_a_parameter_of_a_call_that_is_not_finite_is_not_packed():
    model = Attention().eval()
    bitquant.quantize_(model, None, X)
    with torch.no_grad():
        model.layers[1].in_proj_weight[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.1\.bit_linear_fn_0: its weight is NaN or infinite"):
        bitquant.convert_(model)


def test_calibration_refuses_what_is_not_finite():
    student, _ = both(Encoder().eval())
    for value, message in ((float("nan"), "NaN"), (float("inf"), "infinity|NaN")):
        bad = X.clone()
        bad[0, 1] = value
        with pytest.raises(ValueError, match=message):
            bitquant.calibrate_(student, [X, bad])


@pytest.mark.parametrize("shape", [(0, 6, 5), (2, 0, 5)])
def test_empty_batches_are_refused(shape):
    teacher, empty = Encoder().eval(), torch.zeros(shape)
    student, _ = both(copy.deepcopy(teacher))
    before = copy.deepcopy(student.state_dict())
    for refused in (
        lambda: bitquant.quantize_(copy.deepcopy(teacher), None, empty),
        lambda: bitquant.quantize_(copy.deepcopy(teacher), None, {"x": empty}),
        lambda: bitquant.calibrate_(student, [X, (empty,)]),
        lambda: bitquant.distill(student, teacher, [empty], steps=1),
    ):
        with pytest.raises(ValueError, match="is empty: it (holds|has)"):
            refused()
    changed = [name for name, value in student.state_dict().items() if not torch.equal(value, before[name])]
    assert all("quantizer" in name or "bit_" in name for name in changed)  # of the batch before the empty one


def test_nan_in_training_names_the_step():
    teacher, bad = Encoder().eval(), X.clone()
    student, _ = both(copy.deepcopy(teacher))
    bad[0, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN reached a binarizer.*at step 2"):
        bitquant.distill(student, teacher, [X, bad], steps=2)
