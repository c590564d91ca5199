"""Bit products, whatever kernel, tile and output."""

import pytest
import torch

from bitquant.ops import naive
from bitquant.ops.triton import config, fused
from bitquant.ops.triton.limits import integer_limits

KERNELS = ("popc", "b1", "int8")
SHAPES = ((1, 1, 1), (5, 63, 33), (19, 300, 20))


def layer(random, k, n):
    """threshold, lanes, scale, bias."""
    return random.floats(k) / 9, random.weight(n, k)[1], random.positive(n), 5 * random.floats(n)


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("k", (1, 63, 100, 1000))
def test_pack(random, strict, k):
    threshold = random.floats(k)
    x = random.floats(2 * k, 7).T[:, ::2]  # dense along neither dimension
    x[0] = threshold
    packed = fused.pack(x.contiguous(), threshold, strict)
    words, ones = naive.threshold_pack(x, threshold, strict)
    assert torch.equal(packed.words[:, : words.shape[1]], words) and not packed.words[:, words.shape[1] :].any()
    assert torch.equal(packed.ones, ones)
    assert torch.equal(fused.pack(x.contiguous(), threshold[:1], strict).words[:, : words.shape[1]],
                       naive.threshold_pack(x, threshold[:1], strict)[0])  # fmt: skip


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("unit", (False, True))
@pytest.mark.parametrize("kernel", KERNELS)
def test_linear(random, kernel, unit, dtype):
    for m, k, n in SHAPES:
        x = random.floats(m, k).to(dtype)
        threshold, lanes, scale, bias = layer(random, k, n)
        expected = naive.binary_linear(x, threshold, unit, lanes, n, scale, bias)
        a, weight = fused.pack(x, threshold, unit), fused.Weight(lanes, n, k)
        assert torch.equal(fused.linear(a, weight, scale, bias, unit=unit, dtype=dtype, kernel=kernel), expected)


@pytest.mark.parametrize("unit", (False, True))
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_scale_no_bias_relu(random, kernel, unit):
    x = random.floats(3, 70)
    threshold, lanes, scale, _ = layer(random, 70, 19)
    expected = naive.binary_linear(x, threshold, unit, lanes, 19, scale[:1], None).relu()
    a = fused.pack(x, threshold, unit)
    out = fused.linear(a, fused.Weight(lanes, 19, 70), scale[:1], unit=unit, relu=True, kernel=kernel)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("unit", (False, True))
@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_out_are_those_of_the_layers_one_by_one(random, kernel, unit, dtype):
    for m, k, n in SHAPES[1:]:
        x = random.floats(m, k).to(dtype)
        threshold, lanes, scale, bias = layer(random, k, n)
        following = 3 * random.floats(n)
        y = naive.binary_linear(x, threshold, unit, lanes, n, scale, bias)
        words, ones = naive.threshold_pack(y.relu() if unit else y, following, unit)
        limits = integer_limits(scale, bias, following, k, strict=unit, relu=unit, dtype=dtype)
        weight = fused.Weight(lanes, n, k)
        out = fused.linear_bits(fused.pack(x, threshold, unit), weight, limits, unit=unit, kernel=kernel)
        assert torch.equal(out.words[:, : words.shape[1]], words) and not out.words[:, words.shape[1] :].any()
        assert torch.equal(out.ones, ones)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_tile(random, monkeypatch, kernel):
    m, k, n = 35, 63, 70
    x, (threshold, lanes, scale, bias) = random.floats(m, k), layer(random, k, n)
    expected = naive.binary_linear(x, threshold, False, lanes, n, scale, bias)
    a, weight = fused.pack(x, threshold, False), fused.Weight(lanes, n, k)
    limits = integer_limits(scale, bias, torch.zeros(1), k)
    words = naive.threshold_pack(expected, torch.zeros(1), False)[0]
    for launch in config.CANDIDATES[kernel]:
        monkeypatch.setattr(fused, "settings", lambda *_, launch=launch: launch)
        assert torch.equal(fused.linear(a, weight, scale, bias, kernel=kernel), expected)
        assert torch.equal(fused.linear_bits(a, weight, limits, kernel=kernel).words[:, :3], words)


def test_a_weight_changed_in_place_is_counted_anew(random):
    lanes = random.weight(20, 70)[1]
    before = fused.ones_of(lanes)
    assert fused.ones_of(lanes) is before
    lanes.zero_()
    assert before.any() and not fused.ones_of(lanes).any()


@pytest.mark.parametrize("relu", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_limits_are_exact_for_every_product(random, dtype, relu):
    n, k = 50, 40
    scale, bias, threshold = random.positive(n), 9 * random.floats(n), 9 * random.floats(n)
    acc = torch.arange(-k, k + 1).unsqueeze(1)
    y = acc.float() * scale + bias
    y = (y.relu() if relu else y).to(dtype).float()
    for strict in (False, True):
        limits = integer_limits(scale, bias, threshold, k, strict=strict, relu=relu, dtype=dtype)
        assert torch.equal(acc >= limits, y > threshold if strict else y >= threshold)
