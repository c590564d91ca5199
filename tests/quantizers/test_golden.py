"""The golden vectors of reference/bit.md 1.4, with sign(0) = +1 where the reference has a third level."""

import pytest
import torch

from bitquant import QuantConfig
from bitquant.nn import BitLinear
from bitquant.quantizers import ActivationQuantizer

X = [-1.5, -0.4, 0.0, 0.3, 0.9, 2.0]
P = [0.0, 0.05, 0.1, 0.25, 0.5, 1.2]
G = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

# levels (and width), input, initial scale (None: calibrated on the input), expected scale, y, dL/dx, dL/dalpha
CASES = {
    "signed-auto": ("signed", X, None, 1.7, [-1.7, -1.7, 1.7, 1.7, 1.7, 1.7], [1, 2, 3, 4, 5, 0], 6.123724),
    "signed-half": ("signed", X, 0.5, 0.5, [-0.5, -0.5, 0.5, 0.5, 0.5, 0.5], [0, 2, 3, 4, 0, 0], 6.123724),
    "unit-auto": ("unit", P, None, 1.4, [0, 0, 0, 0, 0, 1.4], [1, 2, 3, 4, 5, 6], -0.787336),
    "unit-half": ("unit", P, 0.5, 0.5, [0, 0, 0, 0, 0.5, 0.5], [1, 2, 3, 4, 5, 0], 1.306394),
    "signed-2": ("signed 2", X, 0.5, 0.5, [-1, -0.5, 0, 0.5, 0.5, 0.5], [0, 2, 3, 4, 0, 0], 4.164133),
    "signed-4": ("signed 4", X, 0.5, 0.5, [-1.5, -0.5, 0, 0.5, 1, 2], [1, 2, 3, 4, 5, 6], 0.339467),
    "unit-2": ("unit 2", P, 0.5, 0.5, [0, 0, 0, 0, 0.5, 1], [1, 2, 3, 4, 5, 6], -1.225652),
    "unit-4": ("unit 4", P, 0.5, 0.5, [0, 0, 0, 0, 0.5, 1], [1, 2, 3, 4, 5, 6], -0.548128),
}
STARTS = {
    "signed": (X, {1: 1.7, 2: 1.7, 4: 0.642540, 8: 0.150851}),
    "unit": (P, {1: 1.4, 2: 0.808290, 4: 0.361478, 8: 0.087671}),
}


@pytest.mark.parametrize("levels", STARTS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_initial_scale(levels, bits):
    values, expected = STARTS[levels]
    quantizer = ActivationQuantizer(levels, bits=bits, init=2.0 if levels == "signed" else 4.0)
    quantizer.observing = True
    quantizer(torch.tensor(values))
    assert quantizer.alpha.item() == pytest.approx(expected[bits], abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_activation(case):
    kind, values, alpha, expected_alpha, y, dx, dalpha = CASES[case]
    levels, _, bits = kind.partition(" ")
    quantizer = ActivationQuantizer(levels, bits=int(bits or 1), init=2.0 if levels == "signed" else 4.0)
    x = torch.tensor(values, requires_grad=True)
    if alpha is None:
        quantizer.observing = True
        quantizer(x)
        quantizer.observing = False
    else:
        torch.nn.init.constant_(quantizer.alpha, alpha)
    level, scale = quantizer(x)
    out = level * scale
    out.backward(G)
    torch.testing.assert_close(quantizer.alpha.detach(), torch.tensor(expected_alpha), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.detach(), torch.tensor(y, dtype=torch.float32), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.grad, torch.tensor(dx, dtype=torch.float32), atol=1e-6, rtol=0)
    torch.testing.assert_close(quantizer.alpha.grad, torch.tensor(dalpha), atol=1e-6, rtol=0)


def test_linear():
    layer = torch.nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[0.2, -0.1, 0.4], [0.05, -0.6, 0.3]])
    layer.bias.data = torch.tensor([0.1, -0.2])
    layer.__class__ = type("Layer", (BitLinear, torch.nn.Linear), {})
    layer.add_quantizers(QuantConfig.preset("bit-ref"), nonnegative=False)
    x = torch.tensor([[0.3, -0.8, 1.0], [-2.0, 0.1, 0.6]], requires_grad=True)
    layer.input_quantizer.observing = True
    layer(x)
    layer.input_quantizer.observing = False
    out = layer(x)
    out.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))

    def close(actual, expected):
        torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)

    close(layer.input_quantizer.alpha.detach(), 1.6)
    close(out.detach(), [[1.42, 1.12], [-0.34, -0.64]])
    close(x.grad, [[0.825, -0.825, 0.825], [0.0, -1.925, 1.925]])
    close(layer.input_quantizer.shift.grad, [0.825, -2.75, 2.75])
    close(layer.input_quantizer.alpha.grad, 0.224537)
    close(layer.weight.grad, [[-3.2, 3.2, 6.4], [-3.2, 3.2, 9.6]])
