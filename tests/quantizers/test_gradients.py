"""Written gradients against the formulas of reference/bit.md 1.2, on random input."""

import pytest
import torch

from bitquant.quantizers import ActivationQuantizer, WeightQuantizer
from bitquant.quantizers.weight import odd_levels


def made(levels, channels, smooth=False):
    torch.manual_seed(1)
    quantizer = ActivationQuantizer(levels, channels, smooth=smooth)
    torch.nn.init.constant_(quantizer.alpha, 0.7)
    torch.nn.init.normal_(quantizer.shift, std=0.3)
    x = torch.randn(5, 9, channels, requires_grad=True)
    grad = torch.randn(5, 9, channels)
    level, alpha = quantizer(x)
    (level * alpha).backward(grad)
    u = (x + quantizer.shift).detach() / 0.7
    return quantizer, x, grad, level.detach(), u


def test_signed_window():
    quantizer, x, grad, level, u = made("signed", 13)
    dz = grad * (u.abs() <= 1)
    torch.testing.assert_close(x.grad, dz)
    torch.testing.assert_close(quantizer.shift.grad, dz.sum((0, 1)))
    torch.testing.assert_close(quantizer.alpha.grad, (grad * level).sum() / x.numel() ** 0.5)
    assert torch.equal(level, torch.where(u >= 0, 1.0, -1.0))


def test_signed_smooth():
    quantizer, x, grad, level, u = made("signed", 13, smooth=True)
    torch.testing.assert_close(x.grad, grad * (2 - 2 * u.abs()).clamp(min=0))
    torch.testing.assert_close(quantizer.alpha.grad, (grad * level).sum() / x.numel() ** 0.5)


def test_unit():
    quantizer, x, grad, level, u = made("unit", 13)
    inside = (u >= 0) & (u <= 1)
    dz = grad * inside
    torch.testing.assert_close(x.grad, dz)
    torch.testing.assert_close(quantizer.shift.grad, dz.sum((0, 1)))
    term = torch.where(inside, u.round() - u, (u > 1).float())
    torch.testing.assert_close(quantizer.alpha.grad, (grad * term).sum() / x.numel() ** 0.5)


def test_thresholds_are_what_the_forward_compares():
    for levels in ("signed", "unit"):
        quantizer, x, *_ = made(levels, 13)
        threshold = quantizer.threshold()
        probe = torch.cat([x.detach().flatten(0, 1), threshold[None], threshold[None].nextafter(torch.tensor(9.0))])
        level, _ = quantizer(probe)
        bits = probe >= threshold if levels == "signed" else probe > threshold
        assert torch.equal(level > 0, bits)
    assert torch.equal(ActivationQuantizer("signed")(torch.tensor([0.0, -0.0]))[0], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_upcast(dtype):
    level, _ = ActivationQuantizer("signed", 4)(torch.randn(3, 4, dtype=dtype))
    assert level.dtype == torch.float32


def test_nan_raises():
    with pytest.raises(ValueError, match="NaN reached a binarizer"):
        ActivationQuantizer("signed", 2)(torch.tensor([[1.0, float("nan")]]))


def test_scale_floor_keeps_its_gradient():
    quantizer = ActivationQuantizer("signed")
    torch.nn.init.constant_(quantizer.alpha, -1.0)
    level, alpha = quantizer(torch.tensor([1.0]))
    (level * alpha).sum().backward()
    assert alpha.item() == pytest.approx(1e-5)
    assert quantizer.alpha.grad == 1


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("center", ["none", "tensor", "row"])
@pytest.mark.parametrize("learnable", [False, True])
def test_weight(granularity, center, learnable):
    torch.manual_seed(0)
    weight = torch.randn(6, 11, requires_grad=True)
    quantizer = WeightQuantizer(weight, granularity=granularity, learnable=learnable, center=center)
    level, scale = quantizer(weight)
    mean = {"none": 0.0, "tensor": weight.mean(), "row": weight.mean(1, keepdim=True)}[center]
    expected = weight.abs().mean().view(1) if granularity == "tensor" else weight.abs().mean(1)
    torch.testing.assert_close(scale, expected)
    assert torch.equal(level, torch.where(weight >= mean, 1.0, -1.0))
    assert torch.equal(level > 0, quantizer.signs(weight))
    grad = torch.randn(6, 11)
    (level * scale.view(-1, 1)).backward(grad)
    torch.testing.assert_close(weight.grad, grad)  # straight through, unclipped, the scale a constant
    if learnable:
        by_row = (grad * level.detach()).sum(1) * expected.detach()
        torch.testing.assert_close(quantizer.log_ratio.grad, by_row if granularity == "row" else by_row.sum().view(1))


def test_zero_row_has_a_positive_scale():
    assert (WeightQuantizer(torch.zeros(2, 3), granularity="row", learnable=True, center="none").scale_init > 0).all()


def test_calibration_ignores_padding():
    quantizer = ActivationQuantizer("signed", 3)
    x = torch.ones(2, 4, 3)
    x[1, 2:] = 100.0
    quantizer.observing, quantizer.valid = True, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    quantizer(x)
    assert quantizer.alpha.item() == 2.0
    assert quantizer.observed[1] == 18


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_odd_levels(bits):
    torch.manual_seed(1)
    scale = torch.tensor([[0.5], [0.02]], requires_grad=True)
    weight = torch.randn(2, 100, requires_grad=True)
    grad, highest = torch.randn(2, 100), 2**bits - 1
    level = odd_levels(weight, scale, bits)
    (level * scale).backward(grad)
    choices = torch.arange(-highest, highest + 1, 2.0)
    ratio = (weight / scale).detach()
    assert torch.equal(level.detach(), choices[(ratio.unsqueeze(-1) - choices).abs().argmin(-1)])
    inside = ratio.abs() <= highest
    torch.testing.assert_close(weight.grad, grad * inside)
    term = torch.where(inside, level.detach() - ratio, level.detach())
    torch.testing.assert_close(scale.grad, (grad * term).sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
