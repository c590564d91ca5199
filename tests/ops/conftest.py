import pytest
import torch

from bitquant import packing
from bitquant.ops import library


@pytest.fixture(params=library.instruction_sets() or [None])
def isa(request):
    """Every instruction set of this processor in turn."""
    if request.param is None:
        pytest.skip(library.unavailable_reason())
    before = library.instruction_set()
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(before)


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory holds garbage, so that an element no kernel wrote shows."""

    def garbage(empty):
        def filled(*args, **kwargs):
            out = empty(*args, **kwargs)
            return out.fill_(float("nan") if out.is_floating_point() else 0x5A5A5A5A & torch.iinfo(out.dtype).max)

        return filled

    monkeypatch.setattr(torch, "empty", garbage(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", garbage(torch.Tensor.new_empty))


class Random:
    """Seeded tensors of the kinds the ops take."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def floats(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def bools(self, *shape, share=0.5):
        return torch.rand(shape, generator=self.generator) < share

    def positive(self, *shape):
        return torch.rand(shape, generator=self.generator) + 0.01

    def weight(self, n, k):
        """bool (n, k) and its lanes."""
        bits = self.bools(n, k)
        return bits, packing.to_lanes(packing.to_words(packing.pack_bits(bits), k))

    def heads(self, batch, heads, length, size):
        """(batch, heads, length, size) as a model has it: a transposed view of (batch, length, heads * size)."""
        return self.floats(batch, length, heads * size).unflatten(-1, (heads, size)).transpose(1, 2)


@pytest.fixture
def random(request):
    return Random(sum(map(ord, request.node.name)))
