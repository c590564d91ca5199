"""The torch operators on the triton backend: every op, odd shapes, empty and strided inputs."""

import math

import pytest
import torch

from bitquant import ops
from bitquant.ops import naive
from bitquant.ops.triton import operators


def both(name, *arguments):
    """The op on the kernels and by definition."""
    with ops.use_backend("triton"):
        out = getattr(torch.ops.bitquant, name)(*arguments)
    return out, getattr(naive, name)(*arguments)


def test_the_kernels_run_and_not_the_definitions(random, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(naive, "threshold_pack", refuse)
    with ops.use_backend("triton"):
        ops.threshold_pack(random.floats(2, 3), torch.zeros(1), False)
        assert ops.dispatch.current("cpu") is operators


@pytest.mark.parametrize("shape", ((2, 3, 70), (1,), (0, 70), (4, 0, 33)))
def test_threshold_pack_and_linear_keep_shapes(random, shape):
    k = shape[-1]
    x = random.floats(*shape)
    out, expected = both("threshold_pack", x, torch.zeros(1), True)
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    lanes, scale, bias = random.weight(20, k)[1], random.positive(20), random.floats(20)
    assert torch.equal(*both("binary_linear", x, random.floats(k) / 9, False, lanes, 20, scale, bias))


def test_strided_inputs_and_float64(random):
    lanes, scale = random.weight(20, 63)[1], random.positive(20)
    for x in (random.floats(63, 5).T, random.floats(5, 126)[:, ::2], random.floats(5, 63).double()):
        assert torch.equal(*both("binary_linear", x, torch.zeros(63), False, lanes, 20, scale, None))
        x = x.unflatten(0, (5, 1))
        assert torch.equal(*both("integer_linear", x, torch.zeros(63), scale[:1], 4, True, lanes, 20, scale, None))


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_integer_linear(random, bits, signed):
    for m, k, n in ((1, 1, 1), (7, 63, 17), (3, 1000, 5)):
        x, step = 2 * random.floats(m, k), torch.tensor([0.3 if bits < 8 else 0.02])
        offset = random.floats(k) / 9
        x[0, :2] = torch.tensor([float("inf"), -float("inf")])[:k]
        x[-1] = (torch.arange(k) - k // 2) * 0.5 * step - offset  # ties
        weight = random.weight(n, k)[1], n, random.positive(n), random.floats(n)
        assert torch.equal(*both("integer_linear", x, offset, step, bits, signed, *weight))


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("bits", (1, 4, 8))
def test_convolution(random, bits, signed):
    step = None if bits == 1 else torch.tensor([0.3 if bits < 8 else 0.02])
    for shape, n, geometry in (
        ((2, 6, 40), 8, ([5], [2], [1, 2], [1], 2)),
        ((1, 1, 1), 1, ([1], [1], [0, 0], [1], 1)),
        ((1, 9, 20), 9, ([7], [1], [3, 3], [2], 9)),  # depthwise
        ((2, 35, 5), 40, ([3], [1], [1, 1], [1], 1)),
        ((2, 4, 9, 8), 6, ([2, 3], [2, 1], [1, 0, 2, 1], [1, 2], 2)),
    ):
        x = random.floats(*shape)
        if shape[0] == 2:
            x[1, :, 3] = 0  # an empty place
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        groups, taps = geometry[-1], math.prod(geometry[0])
        weight = random.weight(n, taps * shape[1] // groups)[1], n, *geometry, random.positive(n), random.floats(n)
        assert torch.equal(*both("convolution", x, random.floats(shape[1]) / 9, step, bits, signed, *weight))


SIZES = ((1, 1, 1, 1, 1, 1), (2, 1, 5, 70, 9, 5), (1, 2, 33, 40, 64, 40), (1, 1, 3, 0, 8, 8), (1, 1, 4, 9, 100, 64))


def heads(random, b, h, tq, tk, d, dv):
    q, k, v = random.heads(b, h, tq, d), random.heads(b, h, tk, d), random.heads(b, h, tk, dv)
    padding, full = random.bools(b, 1, 1, tk, share=0.8), random.bools(1, h, tq, tk, share=0.6)
    full[:, :, 0] = False  # a row without keys
    if tk > 64:
        full[..., 32:64] = False  # a whole block of keys left out
    return (q, k, v), (None, padding, full)


@pytest.mark.parametrize("size", SIZES)
def test_rowmax_attention(random, size):
    qkv, masks = heads(random, *size)
    for keep, margin in zip((None, *masks), (1 << 40, 0, 3, -1), strict=True):
        scale = torch.tensor([0.3])
        assert torch.equal(*both("binary_attention_rowmax", *qkv, keep, torch.tensor(margin), scale))


@pytest.mark.parametrize("size", SIZES)
def test_table_attention(random, size):
    qkv, masks = heads(random, *size)
    table = torch.tensor([round(4096 * math.exp(-2 * 0.21 * delta)) for delta in range(size[4] + 1)])
    for keep, alpha in zip((None, *masks), (0, 0.05, 0.4, 2.5), strict=True):
        ratio, scale = torch.tensor([round(alpha / 2 * 2**24)]), torch.tensor([0.3])
        assert torch.equal(*both("binary_attention_table", *qkv, keep, table, ratio, scale))


def test_attention_of_half_precision(random):
    qkv, masks = heads(random, 1, 2, 5, 40, 64, 32)
    for dtype in (torch.float16, torch.bfloat16):
        q, k, v = (x.to(dtype) for x in qkv)
        arguments = q, k, v, masks[1], torch.tensor(8), torch.tensor([0.37])
        assert torch.equal(*both("binary_attention_rowmax", *arguments))


def test_nan_is_refused(random):
    x = random.floats(3, 70)
    x[1, 68] = float("nan")
    lanes, one = random.weight(20, 70)[1], torch.ones(1)
    with ops.use_backend("triton"):
        with pytest.raises(ValueError, match="x holds NaN"):
            ops.binary_linear(x, one, False, lanes, 20, one, None)
        with pytest.raises(ValueError, match="x holds NaN"):
            ops.integer_linear(x, one, one, 4, True, lanes, 20, one, None)


def test_opcheck(random):
    one = torch.ones(1)
    with ops.use_backend("triton"):
        arguments = random.floats(2, 3, 70), random.floats(70), False, random.weight(20, 70)[1], 20, one, None
        torch.library.opcheck(torch.ops.bitquant.binary_linear.default, arguments)
