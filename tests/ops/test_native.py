"""The CPU kernels equal the definition bit for bit, on every instruction set and odd shape (contract 1)."""

import itertools

import pytest
import torch

from bitquant import ops, packing
from bitquant.ops import naive, native

pytestmark = pytest.mark.usefixtures("isa", "poison")

WIDTHS = (1, 31, 32, 33, 63, 100, 384, 1000, 2100)  # 2100: more words than a byte-wise count holds
COLUMNS = (1, 15, 16, 17, 65, 130)
ROWS = (0, 1, 3, 4, 5, 66, 131)


def same(name, *args):
    expected, got = getattr(naive, name)(*args), getattr(native, name)(*args)
    for e, g in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, got)), strict=True):
        assert e.dtype == g.dtype and e.shape == g.shape and g.is_contiguous()
        assert torch.equal(e, g)


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("k", WIDTHS)
def test_linear_and_pack(random, strict, k):
    for i, (n, m) in enumerate(itertools.product(COLUMNS, ROWS)):
        x, threshold = random.floats(m, k), random.floats(k if i % 2 else 1) / 9
        scale, bias = random.positive(n if i % 3 else 1), random.floats(n) if i % 5 else None
        same("threshold_pack", x, threshold, strict)
        same("binary_linear", x, threshold, strict, random.weight(n, k)[1], n, scale, bias)


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("k", WIDTHS)
def test_linear_between_bits(random, strict, k):
    for i, (n, m) in enumerate(itertools.product(COLUMNS, ROWS)):
        words, _ = naive.threshold_pack(random.floats(m, k), torch.zeros(1), strict)
        scale, bias = random.positive(n if i % 3 else 1), random.floats(n) if i % 5 else None
        arguments = (words, k, strict, random.weight(n, k)[1], n, scale, bias)
        same("linear_of_bits", *arguments)
        taken = naive.linear_of_bits(*arguments)[:1].flatten()  # so that every column has a tie
        threshold = (random.floats(1), taken, -taken)[i % 3] if m else torch.zeros(n)
        for relu in (False, True):
            same("bits_of_linear", *arguments, relu, threshold, bool(i % 2))


def test_bits_of_what_is_no_number_are_refused(random):
    words, _ = naive.threshold_pack(random.floats(40, 70), torch.zeros(1), False)
    bias = torch.zeros(33)
    for column in (0, 20, 32):
        bad = bias.index_fill(0, torch.tensor([column]), torch.nan)
        for relu in (False, True):
            with pytest.raises(ValueError, match="NaN"):
                native.bits_of_linear(
                    words, 70, False, random.weight(33, 70)[1], 33, torch.ones(1), bad, relu, torch.zeros(1), False
                )


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("bits", (2, 4, 8))
@pytest.mark.parametrize("k", WIDTHS)
def test_integer_linear(random, k, bits, signed):
    for i, (n, m) in enumerate(itertools.product((1, 17, 130), (0, 5, 66))):
        x, offset = 3 * random.floats(m, k), random.floats(k if i % 2 else 1) / 9
        scale, bias = random.positive(n if i % 3 else 1), random.floats(n) if i % 5 else None
        arguments = (random.positive(1), bits, signed, random.weight(n, k)[1], n, scale, bias)
        same("integer_linear", x, offset, *arguments)


@pytest.mark.parametrize("signed", (True, False))
@pytest.mark.parametrize("bits", (2, 4, 8))
def test_ties_and_clipping(random, bits, signed):
    _, lanes = random.weight(20, 1030)
    edges = torch.tensor([float("inf"), -float("inf"), 3.4e38, -3.4e38, 1e-40, -0.0])
    for step in (1.0, 0.3, 1e-30, 3e38):
        halves = (torch.arange(1024) - 512) * 0.5 * step
        x = torch.cat([halves, edges]).repeat(3, 1)
        for offset in (torch.zeros(1), torch.tensor([0.5]), x[0].nan_to_num().roll(1)):
            arguments = (offset, torch.tensor([step]), bits, signed, lanes, 20, torch.tensor([0.1]), None)
            same("integer_linear", x.nextafter(torch.zeros(())), *arguments)
            same("integer_linear", x, *arguments)


def test_integer_linear_dtypes_strides_and_other_widths(random):
    _, lanes = random.weight(40, 70)
    offset, step = random.floats(140)[::2], torch.tensor(0.3)
    for bits in (1, 2, 32):
        arguments = (offset, step, bits, True, lanes, 40, random.positive(80)[::2], random.floats(80)[::2])
        for x in (random.floats(2, 3, 70), random.floats(70, 6).T, random.floats(5, 90)[:, :70], random.floats(70)):
            for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
                same("integer_linear", x.to(dtype), *arguments)


@pytest.mark.parametrize("strict", (False, True))
def test_extreme_values_and_ties(random, strict):
    tiny = 1e-40
    values = torch.tensor([0.0, -0.0, tiny, -tiny, float("inf"), -float("inf"), 1.0, 3.4e38, -3.4e38, 0.1])
    x = values.repeat(11)[:101].repeat(3, 1)
    _, lanes = random.weight(20, 101)
    for threshold in (torch.zeros(1), torch.tensor([0.1]), x[0].roll(1), x[0].clone(), -x[0]):
        same("threshold_pack", x, threshold, strict)
        same("binary_linear", x, threshold, strict, lanes, 20, torch.tensor([3e38]), None)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_other_dtypes_and_strides(random, dtype):
    _, lanes = random.weight(40, 70)
    words, wide = naive.threshold_pack(random.floats(2, 5, 70), torch.zeros(1), False)[0], random.positive(80)[::2]
    for bits in (words, words[:, ::2], words[0, 0], words[:0]):
        same("linear_of_bits", bits, 70, False, lanes, 40, wide, wide)
        same("bits_of_linear", bits, 70, False, lanes, 40, wide, wide, True, wide, True)
    arguments = (random.floats(70) / 9, False, lanes, 40, random.positive(40), random.floats(40))
    for x in (random.floats(2, 3, 70), random.floats(70, 6).T, random.floats(5, 90)[:, :70], random.floats(70)):
        same("binary_linear", x.to(dtype), *arguments)
        same("binary_linear", x, *arguments)
        same("threshold_pack", x.to(dtype), *arguments[:2])
    wide = random.positive(80)[::2]
    same("binary_linear", random.floats(3, 70), *arguments[:4], wide, random.floats(80)[::2])


SIZES = (
    (1, 1, 1, 1),
    (5, 7, 32, 32),
    (16, 16, 32, 33),
    (9, 40, 63, 16),
    (33, 100, 64, 100),
    (3, 1000, 100, 5),
    (6, 0, 8, 8),
)


def masks(random, b, h, tq, tk):
    yield None
    padding = random.bools(b, 1, 1, tk, share=0.7)
    padding[0] = False
    yield padding
    yield random.bools(tq, tk)
    yield random.bools(b, h, tq, tk, share=0.1)
    yield random.bools(tk, tq).T  # keys not dense
    yield torch.tensor(True)
    near = (torch.arange(tq)[:, None] * tk // tq - torch.arange(tk)).abs() <= tk // 9
    yield near | (torch.arange(tk) < 3)  # whole blocks between these are skipped


@pytest.mark.parametrize(("tq", "tk", "d", "dv"), SIZES)
def test_attention(random, tq, tk, d, dv):
    b, h = 2, 3
    q, k, v = random.heads(b, h, tq, d), random.heads(b, h, tk, d), random.heads(b, h, tk, dv)
    scale = torch.tensor([0.37])
    for keep in masks(random, b, h, tq, tk):
        for margin in (0, 1, 4, 5, 1 << 50, -1, -6):
            same("binary_attention_rowmax", q, k, v, keep, torch.tensor(margin), scale)
        for c, half_alpha in ((0.01, 0.005), (0.1, 0.02), (0.5, 0.25), (0.2, 1.5), (0.3, 0.0), (0.0, 0.01)):
            table = (4096 * torch.exp(-2 * c * torch.arange(d + 1))).round().long()
            ratio = torch.tensor([round(half_alpha * 2**24)])
            same("binary_attention_table", q, k, v, keep, table, ratio, scale[0])


def test_attention_dtypes_and_strides(random):
    q, k = random.floats(2, 5, 20, 3).transpose(2, 3), random.heads(2, 5, 4, 20)  # q: channels not dense
    v = random.floats(2, 5, 4, 6)
    for dtype in (torch.float32, torch.bfloat16):
        parts = [x.to(dtype) for x in (q, k, v)]
        same("binary_attention_rowmax", *parts, None, torch.tensor([2]), torch.tensor([0.3]))
    expanded = random.floats(1, 1, 4, 20).expand(2, 5, 4, 20)
    same("binary_attention_rowmax", q, expanded, v, None, torch.tensor([2]), torch.tensor([0.3]))


@pytest.mark.parametrize("dim", (1, 7, 8, 9, 16, 17, 100, 384))
@pytest.mark.parametrize("bits", (1, 2, 4, 8))
def test_embedding(random, dim, bits):
    packed = packing.pack_bits(random.bools(bits * 50, dim))
    for indices in (torch.tensor(3), torch.tensor([[0, 49], [7, 7]]), torch.empty(0, 4, dtype=torch.int32)):
        same("embedding", indices, packed, bits, dim, random.positive(50))
        same("embedding", indices, packed, bits, dim, random.positive(1))
    same("embedding", torch.empty(3, 0, dtype=torch.long), packed[:0], bits, dim, random.positive(1))


@pytest.mark.parametrize("where", (0, 15, 16, 31, 33, 69))
def test_nan_is_found_wherever_it_is(random, where):
    x = random.floats(9, 70)
    x[8, where] = float("nan")
    _, lanes = random.weight(3, 70)
    with pytest.raises(ValueError, match="x holds NaN"):
        native.binary_linear(x, torch.zeros(1), False, lanes, 3, torch.ones(1), None)
    with pytest.raises(ValueError, match="x holds NaN"):
        native.threshold_pack(x, torch.zeros(70), True)
    with pytest.raises(ValueError, match="x holds NaN"):
        native.integer_linear(x, torch.zeros(1), torch.ones(1), 4, True, lanes, 3, torch.ones(1), None)
    clean = random.floats(9, 70)
    for bad in range(3):
        q, k, v = ((x if i == bad else clean)[None, None] for i in range(3))
        with pytest.raises(ValueError, match="NaN"):
            native.binary_attention_rowmax(q, k, v, None, torch.tensor(1), torch.ones(1))


def test_what_training_and_naive_refuse_is_refused_here_too(random):
    q = random.floats(1, 1, 2, 4)
    with ops.use_backend("native"):
        for table, ratio in ((torch.full((5,), 4097), 1), (torch.full((5,), -1), 1), (torch.ones(5).long(), -1)):
            with pytest.raises(ValueError, match="0 to 4096"):
                ops.binary_attention_table(q, q, q, None, table, torch.tensor(ratio), torch.ones(1))
        for index in (-1, 2):
            with pytest.raises(IndexError, match="2 rows"):
                ops.embedding(torch.tensor([0, index]), torch.zeros(4, 1, dtype=torch.uint8), 2, 8, torch.ones(1))
