"""The native convolution equals the definition bit for bit: every geometry, width and layout of memory (contract 1)."""

import math

import pytest
import torch

from bitquant import ops
from bitquant.ops import naive, native

pytestmark = pytest.mark.usefixtures("isa", "poison")

LEVELS = tuple((bits, signed) for bits in (1, 2, 4, 8) for signed in (True, False))

# name: channels in and out, groups, kernel, stride, padding (before and after), dilation, space
GEOMETRIES = {
    "one": (1, 1, 1, (1,), (1,), (0, 0), (1,), (1,)),
    "pointwise": (63, 100, 1, (1,), (1,), (0, 0), (1,), (40,)),
    "subsampling": (5, 3, 1, (1,), (3,), (0, 0), (1,), (50,)),
    "wide": (1000, 5, 1, (3,), (1,), (1, 1), (1,), (18,)),
    "words": (64, 34, 2, (3,), (2,), (1, 0), (1,), (67,)),
    "grouped": (100, 60, 4, (5,), (1,), (2, 2), (1,), (33,)),  # 25 channels and 15 rows a group: nothing is aligned
    "causal": (33, 20, 1, (4,), (1,), (6, 0), (2,), (70,)),
    "positional": (96, 96, 2, (128,), (1,), (64, 64), (1,), (150,)),
    "depthwise": (7, 7, 7, (31,), (1,), (15, 15), (1,), (100,)),
    "depthwise strided": (4, 4, 4, (9,), (3,), (5, 1), (2,), (99,)),
    "two a channel": (3, 6, 3, (33,), (1,), (16, 16), (1,), (65,)),
    "many a channel": (2, 42, 2, (40,), (1,), (3, 4), (1,), (90,)),
    "only padding": (3, 2, 1, (2,), (1,), (20, 20), (1,), (3,)),
    "long": (40, 5, 1, (3,), (1,), (1, 1), (1,), (1300,)),
    "square": (31, 18, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (9, 35)),
    "uneven": (6, 9, 3, (2, 5), (2, 1), (0, 1, 2, 3), (1, 2), (12, 20)),
    "patches": (3, 20, 1, (4, 4), (4, 4), (0, 0, 0, 0), (1, 1), (17, 24)),
    "sparse": (3, 4, 1, (1, 1), (3, 2), (0, 0, 0, 0), (1, 1), (11, 12)),
    "depthwise square": (5, 5, 5, (7, 7), (1, 1), (3, 3, 3, 3), (1, 1), (13, 17)),
    "depthwise halved": (3, 3, 3, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (40, 18)),
    "tall": (8, 4, 1, (3, 1), (1, 1), (2, 0, 0, 0), (2, 1), (300, 3)),
}


def arguments(random, name, bits, signed):
    c_in, c_out, groups, kernel, stride, padding, dilation, _ = GEOMETRIES[name]
    _, lanes = random.weight(c_out, math.prod(kernel) * c_in // groups)
    step = random.positive(1) if bits > 1 else None
    return [
        random.floats(c_in) / 9, step, bits, signed, lanes, c_out, list(kernel), list(stride), list(padding),
        list(dilation), groups, random.positive(c_out), random.floats(c_out),
    ]  # fmt: skip


def image(random, name, batch=2):
    c_in, *_, space = GEOMETRIES[name]
    return random.floats(batch, c_in, *space)


def same(x, given):
    expected, got = naive.convolution(x, *given), native.convolution(x, *given)
    assert expected.dtype == got.dtype and expected.shape == got.shape and got.is_contiguous()
    assert torch.equal(expected, got)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(("bits", "signed"), LEVELS)
def test_geometries(random, name, bits, signed):
    x, given = image(random, name), arguments(random, name, bits, signed)
    same(x, given)
    same(x[:0], given)
    x[0, ..., x.shape[-1] // 3 :] = 0  # masked frames
    x[1, : x.shape[1] // 2 + 1] = 0  # channels alone do not mask
    x[1, ..., ::4] = -0.0
    given[-1] = None
    same(x, given)
    same(x.relu(), given)
    given[0], given[-2] = given[0][:1], given[-2][:1]  # one offset and one scale for all
    same(torch.zeros_like(x), given)
    same(x, given)


@pytest.mark.parametrize("name", ("grouped", "words", "depthwise", "square", "depthwise square"))
@pytest.mark.parametrize("bits", (1, 4))
def test_memory_layouts_and_dtypes(random, name, bits):
    x, given = image(random, name), arguments(random, name, bits, True)
    x[:, :, ..., 3:5] = 0
    same(x.movedim(1, -1).contiguous().movedim(-1, 1), given)  # channels last
    same(x.transpose(0, -1).contiguous().transpose(0, -1), given)  # neither channels nor columns dense
    same(x.repeat_interleave(2, -1)[..., ::2], given)
    same(x[:1].expand(3, *x.shape[1:]), given)
    same(x[:, :1].expand_as(x), given)
    given[0], given[-2] = given[0].repeat_interleave(2)[::2], given[-2].repeat_interleave(2)[::2]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        same(x.to(dtype), given)


def test_float64_below_float32_still_counts(random):
    x, given = torch.full((1, 7, 100), 1e-300, dtype=torch.float64), arguments(random, "depthwise", 1, True)
    same(x, given)
    assert native.convolution(x, *given).any()


@pytest.mark.parametrize("name", ("wide", "depthwise", "square"))
@pytest.mark.parametrize(("bits", "signed"), LEVELS)
def test_extreme_values_and_ties(random, name, bits, signed):
    given = arguments(random, name, bits, signed)
    x = image(random, name)
    if bits == 1:
        x[0] = given[0].view(-1, *[1] * (x.ndim - 2))
    else:
        given[0].zero_()
        x[0] = ((x[0] * 3).round() + 0.5) * given[1]
    x[1, ..., ::3], x[1, ..., 1::3] = float("inf"), -float("inf")
    x[1, 0] = 1e-40
    same(x, given)


@pytest.mark.parametrize("name", ("one", "subsampling", "words", "depthwise", "sparse", "patches", "square"))
@pytest.mark.parametrize("bits", (1, 2))
def test_nan_is_found_wherever_it_is(random, name, bits):
    x, given = image(random, name), arguments(random, name, bits, True)
    for flat in (0, x.numel() // 2, x.numel() - 1):  # the last is often beyond all that an output needs
        spoilt = x.clone()
        spoilt.view(-1)[flat] = float("nan")
        for layout in (spoilt, spoilt.movedim(1, -1).contiguous().movedim(-1, 1)):
            with pytest.raises(ValueError, match="x holds NaN, which has no sign bit"):
                native.convolution(layout, *given)


@pytest.mark.parametrize("name", ("long", "positional", "depthwise", "square", "tall"))
@pytest.mark.parametrize("bits", (1, 2))
def test_blocks(monkeypatch, random, name, bits):
    """Many threads on little input: blocks of a single tile."""
    x, given = image(random, name, batch=40), arguments(random, name, bits, True)
    x[::3, ..., 5:] = 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    same(x, given)
    same(x[1:2], given)


def test_through_the_operator(random):
    x, given = image(random, "uneven"), arguments(random, "uneven", 1, True)
    with ops.use_backend("naive"):
        expected = ops.convolution(x, *given)
    with ops.use_backend("native"), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.convolution(x, *given), expected)
