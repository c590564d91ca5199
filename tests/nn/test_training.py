"""Products of a training step: forward as without gradients, backward as autograd's, rounded only where asked for."""

import copy

import pytest
import torch
from torch import nn

import bitquant
from bitquant import processor
from bitquant.nn import BitConv, BitLinear
from bitquant.nn.training import IntegerProduct, fast_gradients

needs_int8 = pytest.mark.skipif(not processor.int8_is_fast(), reason="no int8 instructions")


def layer(made, shape, bits, nonnegative=False):
    """A float layer and its quantized, calibrated copy."""
    torch.manual_seed(0)
    x = torch.rand(shape) if nonnegative else torch.randn(shape)
    model = nn.Sequential(nn.Identity(), made, nn.Identity())
    config = bitquant.QuantConfig.preset("bit-plus", activation_bits=bits, rules={"1": {}})
    student = copy.deepcopy(model)
    bitquant.quantize_(student, config, x)
    bitquant.calibrate_(student, [x])
    return student[1], x


def gradients(module, x, wanted=False):
    x = x.clone().requires_grad_()
    module.zero_grad()
    with fast_gradients(wanted):
        out = module(x)
        torch.manual_seed(1)
        out.backward(torch.randn_like(out))
    return out.detach(), [x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


CASES = {
    "linear": (lambda: nn.Linear(63, 100), (7, 63)),
    "linear, one row": (lambda: nn.Linear(100, 1), (1, 100)),
    "linear, more dimensions": (lambda: nn.Linear(20, 30), (2, 3, 5, 20)),
    "one input": (lambda: nn.Linear(1, 4), (6, 1)),
    "no batch": (lambda: nn.Linear(20, 5), (20,)),
    "pointwise, one channel": (lambda: nn.Conv1d(1, 3, 1), (2, 1, 9)),
    "pointwise, same": (lambda: nn.Conv1d(6, 3, 1, padding="same"), (2, 6, 9)),
    "pointwise": (lambda: nn.Conv1d(24, 33, 1), (2, 24, 50)),
    "pointwise, 2-d": (lambda: nn.Conv2d(8, 9, 1), (2, 8, 5, 6)),
}


@needs_int8
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("made, shape", CASES.values(), ids=CASES.keys())
def test_int8_changes_nothing(made, shape, bits, monkeypatch):
    module, x = layer(made(), shape, bits)
    assert isinstance(module, (BitLinear, BitConv))
    out, found = gradients(module, x)
    with torch.no_grad():
        assert torch.equal(module(x), out)
    monkeypatch.setattr("bitquant.nn.training.int8_is_fast", lambda: False)
    plain, expected = gradients(module, x)
    assert torch.equal(out, plain)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@needs_int8
@pytest.mark.skipif(not processor.bfloat16_is_fast(), reason="no bfloat16 instructions")
def test_fast_gradients_are_rounded_ones():
    module, x = layer(nn.Linear(100, 80), (50, 100), 1)
    (out, exact), (fast_out, fast) = gradients(module, x), gradients(module, x, wanted=True)
    assert torch.equal(out, fast_out)
    assert any(not torch.equal(a, b) for a, b in zip(exact, fast, strict=True))
    for a, b in zip(exact, fast, strict=True):
        assert (a - b).norm() <= 0.01 * b.norm()


@needs_int8
def test_levels_above_int8_and_nothing_at_all():
    assert IntegerProduct.apply(torch.ones(3, 4), torch.ones(2, 4), torch.float32).eq(4).all()
    module, x = layer(nn.Sequential(nn.ReLU(), nn.Linear(20, 3))[1], (6, 20), 8, nonnegative=True)
    module.input_quantizer.levels = "unit"  # 0 to 255
    gradients(module, x)
    out, _ = gradients(module, x[:0])
    assert out.shape == (0, 3)


@pytest.mark.parametrize("bits", [1, 32])
def test_a_trained_pointwise_convolution_is_its_packed_self(bits):
    module, x = layer(nn.Conv1d(63, 20, 1), (1, 63, 7), bits)
    gradients(module, x)
    model = nn.Sequential(nn.Identity(), nn.Conv1d(63, 20, 1), nn.Identity())
    bitquant.quantize_(model, bitquant.QuantConfig.preset("bit-plus", activation_bits=bits, rules={"1": {}}), x)
    bitquant.calibrate_(model, [x])
    with torch.no_grad():
        expected = model.eval()(x)
        bitquant.convert_(model)
        assert torch.equal(model(x), expected)


@needs_int8
def test_a_second_derivative_is_refused():
    module, x = layer(nn.Linear(20, 3), (6, 20), 1)
    x.requires_grad_()
    (first,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
