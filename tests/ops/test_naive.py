"""The definitions against loops and float64 products written independently of them."""

import math

import pytest
import torch

from bitquant import ops, packing


@pytest.fixture(autouse=True)
def definition():
    with ops.use_backend("naive"):
        yield


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("k", (1, 63, 100))
def test_threshold_pack_bit_by_bit(random, strict, k):
    x, threshold = random.floats(4, k), random.floats(k)
    x[:, 0] = threshold[0]  # a tie
    words, ones = ops.threshold_pack(x, threshold, strict)
    for i in range(4):
        expected = [
            float(a) > float(t) if strict else float(a) >= float(t) for a, t in zip(x[i], threshold, strict=True)
        ]
        bits = [bool(int(words[i, j // 32]) >> (j % 32) & 1) for j in range(32 * words.shape[1])]
        assert bits == expected + [False] * (len(bits) - k)
        assert int(ones[i]) == sum(expected)
    assert bool(words[0, 0] & 1) is not strict


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize(("m", "k", "n"), ((1, 1, 1), (3, 63, 5), (7, 1000, 33)))
def test_linear_is_the_float64_product_rounded_twice(random, strict, m, k, n):
    x, threshold, scale, bias = random.floats(m, k), random.floats(k) / 9, random.positive(n), random.floats(n)
    bits, lanes = random.weight(n, k)
    a = (x > threshold).double() if strict else (x >= threshold).double() * 2 - 1
    acc = a @ (bits.double() * 2 - 1).T
    rounded = (acc * scale.double()).float()  # exact product of 24-bit numbers, rounded once
    expected = (rounded.double() + bias.double()).float()
    assert torch.equal(ops.binary_linear(x, threshold, strict, lanes, n, scale, bias), expected)
    assert torch.equal(ops.binary_linear(x, threshold, strict, lanes, n, scale, None), rounded)


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("bits", (2, 4, 8))
def test_integer_linear_level_by_level(random, bits, signed):
    x, step, scale, bias = 2 * random.floats(3, 63), random.positive(1), random.positive(5), random.floats(5)
    offset = random.floats(63)
    x[0], x[1, :2] = (torch.arange(63) - 31) * 0.5 * step - offset, torch.tensor([float("inf"), -float("inf")])
    weight, lanes = random.weight(5, 63)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    out = ops.integer_linear(x, offset, step, bits, signed, lanes, 5, scale, bias)
    quotient = (x + offset) / step
    for i, n in torch.cartesian_prod(torch.arange(3), torch.arange(5)).tolist():
        levels = [round(min(max(q, low), high)) for q in quotient[i].tolist()]  # Python rounds a tie to even
        acc = sum(level if w else -level for level, w in zip(levels, weight[n].tolist(), strict=True))
        assert float(out[i, n]) == float(torch.tensor(acc) * scale[n] + bias[n])


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("bits", (1, 4))
def test_convolution_tap_by_tap(random, bits, signed):
    x, offset, scale = random.floats(2, 4, 9, 8), random.floats(4) / 9, random.positive(6)
    x[1, :, 3] = 0
    weight, lanes = random.weight(6, 2 * 3 * 2)
    step = torch.tensor([0.4]) if bits > 1 else None
    out = ops.convolution(
        x, offset, step, bits, signed, lanes, 6, [2, 3], [2, 1], [1, 0, 2, 1], [1, 2], 2, scale, None
    )  # fmt: skip
    low, high = (-8, 7) if signed else (0, 15)
    assert out.shape == (2, 6, 5, 7)

    def level(value, shift):
        if bits == 1:
            return (1 if value >= shift else -1) if signed else int(value > shift)
        return round(min(max(float((value + shift) / step), low), high))

    for b, n, i, j in [(0, 0, 0, 0), (0, 5, 2, 3), (0, 3, 4, 6), (1, 2, 2, 2), (1, 4, 1, 5)]:
        acc = 0
        for tap, (p, q) in enumerate([(p, q) for p in range(2) for q in range(3)]):
            row, column = 2 * i - 1 + p, j - 2 + 2 * q
            if 0 <= row < 9 and 0 <= column < 8 and x[b, :, row, column].any():
                for c in range(2):
                    channel = n // 3 * 2 + c
                    value = level(x[b, channel, row, column], offset[channel])
                    acc += value if weight[n, tap * 2 + c] else -value
        assert float(out[b, n, i, j]) == float(torch.tensor(acc) * scale[n])


def signs(x):
    return (x >= 0).double() * 2 - 1


@pytest.mark.parametrize("margin", (0, 3, 1 << 40))
def test_rowmax_attention_row_by_row(random, margin):
    q, k, v = random.heads(2, 2, 4, 9), random.heads(2, 2, 6, 9), random.heads(2, 2, 6, 5)
    keep = random.bools(2, 1, 4, 6, share=0.7)
    keep[0, 0, 1] = False
    scale = torch.tensor([0.3])
    out = ops.binary_attention_rowmax(q, k, v, keep, torch.tensor(margin), scale)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4)).tolist():
        kept = [j for j in range(6) if keep[b, 0, i, j]]
        s = {j: float(signs(q[b, h, i]) @ signs(k[b, h, j])) for j in kept}
        taken = [j for j in kept if s[j] >= max(s.values()) - margin]
        expected = torch.zeros(5)
        if taken:
            acc = sum(signs(v[b, h, j]) for j in taken)
            expected = (acc.float() / len(taken)) * scale
        assert torch.equal(out[b, h, i], expected)


@pytest.mark.parametrize("alpha", (0.05, 0.4, 2.5))
def test_table_attention_is_softmax_above_half_alpha(random, alpha):
    c, d = 0.21, 9
    q, k, v = random.heads(2, 2, 4, d), random.heads(2, 2, 6, d), random.heads(2, 2, 6, 5)
    keep = random.bools(2, 1, 1, 6, share=0.8)
    keep[1] = False
    table = torch.tensor([round(4096 * math.exp(-2 * c * delta)) for delta in range(d + 1)])
    ratio = round(alpha / 2 * 2**24)
    scale = torch.tensor(0.3)
    out = ops.binary_attention_table(q, k, v, keep, table, torch.tensor([ratio]), scale)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4)).tolist():
        kept = [j for j in range(6) if keep[b, 0, 0, j]]
        s = {j: int(signs(q[b, h, i]) @ signs(k[b, h, j])) for j in kept}
        e = {j: int(table[(max(s.values()) - s[j]) // 2]) for j in kept}
        taken = [j for j in kept if e[j] * 2**24 > ratio * sum(e.values())]
        p = {j: math.exp(c * s[j]) / sum(math.exp(c * t) for t in s.values()) for j in kept}
        assert all((p[j] > alpha / 2) == (j in taken) for j in kept if abs(p[j] - alpha / 2) > 1e-3)
        acc = sum((signs(v[b, h, j]) for j in taken), torch.zeros(5, dtype=torch.float64))
        assert torch.equal(out[b, h, i], acc.float() * scale)


@pytest.mark.parametrize("dim", (1, 9, 16, 100))
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_embedding_row_by_row(random, dim, bits):
    planes, scale = random.bools(bits, 7, dim), random.positive(7)
    indices = torch.tensor([[0, 6, 3], [3, 1, 0]])
    out = ops.embedding(indices, packing.pack_bits(planes.flatten(0, 1)), bits, dim, scale)
    assert out.shape == (2, 3, dim)
    for i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        row = indices[i, j]
        levels = [sum(2**b if planes[b, row, c] else -(2**b) for b in range(bits)) for c in range(dim)]
        assert torch.equal(out[i, j], torch.tensor(levels, dtype=torch.float32) * scale[row])
