import numpy as np
import pytest
import torch

from bitquant import packing

WIDTHS = (1, 7, 8, 9, 31, 32, 33, 63, 64, 100, 1000)


def random_bits(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) > 0.5


@pytest.mark.parametrize("k", WIDTHS)
def test_bytes_are_little_endian_along_k(k):
    bits = random_bits(3, 5, k)
    packed = packing.pack_bits(bits)
    assert packed.shape == (3, 5, -(-k // 8))
    assert np.array_equal(packed.numpy(), np.packbits(bits.numpy(), axis=-1, bitorder="little"))
    assert torch.equal(packing.unpack_bits(packed, k), bits)


@pytest.mark.parametrize("k", WIDTHS)
def test_words_are_bytes_read_as_integers_with_a_zero_tail(k):
    bits = random_bits(4, k)
    packed = packing.pack_bits(bits)
    words = packing.to_words(packed, k)
    for row, values in zip(words.tolist(), bits.tolist(), strict=True):
        integer = sum((word & 0xFFFFFFFF) << 32 * i for i, word in enumerate(row))
        assert integer == sum(bit << i for i, bit in enumerate(values))
    assert torch.equal(packing.to_bytes(words, k), packed)


@pytest.mark.parametrize("n", (1, 15, 16, 17, 50))
@pytest.mark.parametrize("k", (1, 33, 100))
def test_lanes_hold_sixteen_rows_side_by_side(n, k):
    words = packing.to_words(packing.pack_bits(random_bits(n, k)), k)
    lanes = packing.to_lanes(words)
    assert lanes.shape == (-(-n // 16), -(-k // 32), 16) and lanes.is_contiguous()
    for row in range(lanes.shape[0] * 16):
        expected = words[row] if row < n else torch.zeros_like(words[0])
        assert torch.equal(lanes[row // 16, :, row % 16], expected)
    assert torch.equal(packing.from_lanes(lanes, n), words)


def test_no_rows_and_strided_inputs():
    assert packing.pack_bits(torch.empty(0, 9, dtype=torch.bool)).shape == (0, 2)
    assert packing.to_words(torch.empty(0, 2, dtype=torch.uint8), 9).shape == (0, 1)
    bits = random_bits(40, 6).T
    words = packing.to_words(packing.pack_bits(bits), 40)
    assert torch.equal(packing.unpack_bits(packing.to_bytes(words[:, :2], 40), 40), bits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: packing.pack_bits(torch.zeros(3)), "bits must be torch.bool"),
        (lambda: packing.pack_bits(torch.zeros(3, 0, dtype=torch.bool)), "last dimension"),
        (lambda: packing.unpack_bits(torch.zeros(2, 2, dtype=torch.int32), 9), "must be torch.uint8"),
        (lambda: packing.unpack_bits(torch.zeros(2, 2, dtype=torch.uint8), 17), "17 bits take 3 bytes a row, got 2"),
        (lambda: packing.unpack_bits(torch.full((2, 2), 2, dtype=torch.uint8), 9), "above the 9 valid ones"),
        (lambda: packing.to_words(torch.full((2, 2), 255, dtype=torch.uint8), 9), "above the 9 valid ones"),
        (lambda: packing.to_bytes(torch.zeros(2, 2, dtype=torch.int64), 40), "must be torch.int32"),
        (lambda: packing.to_bytes(torch.zeros(2, 2, dtype=torch.int32), 32), "32 bits take 1 words a row, got 2"),
        (lambda: packing.to_bytes(torch.full((2, 1), 1 << 20, dtype=torch.int32), 9), "above the 9 valid ones"),
        (lambda: packing.to_bytes(torch.full((2, 1), 1 << 9, dtype=torch.int32), 9), "above the 9 valid ones"),
        (lambda: packing.to_lanes(torch.zeros(2, dtype=torch.int32)), "two dimensions"),
        (lambda: packing.from_lanes(torch.zeros(2, 3, 16, dtype=torch.int32), 16), "have shape"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
