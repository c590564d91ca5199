"""Random calls of every op: a backend gives what the definition gives, or refuses with the same kind of error.

``python -m tests.ops.random_cases --count 10000`` runs that many of each op on every instruction set; with
``--backend triton`` in Triton's interpreter (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from bitquant import ops, packing
from bitquant.ops import library, operators
from bitquant.quantizers.elastic import signed_levels, unit_levels
from bitquant.quantizers.integer import integer_levels

NUMBERS = torch.tensor([0.0, -0.0, 0.25, -0.25, 1.0, -1.0, 3.0, 1e-45, 1e38, -1e38])
ODD = torch.tensor([torch.inf, -torch.inf, torch.nan])
HOSTILE = (0, -1, 2**31 - 1, 2**31, 2**32 + 1, 2**60, 2**62, 2**63 - 1, -(2**63))
DTYPES = (torch.float16, torch.bfloat16, torch.float64)


class Draw:
    """One random call, from its seed alone."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.hostile = self.chance(0.15)

    def number(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, share: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < share

    def one_of(self, choices):
        return choices[self.number(0, len(choices) - 1)]

    def size(self) -> int:
        return self.one_of((1, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 40, 63, 65, 130))

    def lead(self) -> list[int]:
        return [self.number(0, 5) if self.chance(0.9) else 37 for _ in range(self.number(0, 2))]

    def floats(self, *shape: int, kind: bool = False) -> Tensor:
        """Ordinary numbers and ties, at times extremes; ``kind``: also of other types and layouts."""
        x = torch.randn(shape, generator=self.generator)
        x = torch.where(self.bits(*shape), x, NUMBERS[torch.randint(len(NUMBERS), shape, generator=self.generator)])
        if x.numel() and self.chance(0.15):
            x.view(-1)[self.number(0, x.numel() - 1)] = self.one_of(ODD)
        if kind:
            x = self.lay_out(x.to(self.one_of(DTYPES)) if self.chance(0.2) else x)
        return self.spoil(x)

    def lay_out(self, x: Tensor) -> Tensor:
        """The same values, at times with other strides."""
        way = self.number(0, 5)
        if way == 0 and x.ndim > 1:
            i, j = self.number(0, x.ndim - 1), self.number(0, x.ndim - 1)
            return x.transpose(i, j).contiguous().transpose(i, j)
        if way == 1 and x.ndim:
            return x.repeat_interleave(2, -1)[..., ::2]
        if way == 2:
            return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)
        if way == 3 and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        if way == 4 and x.ndim > 1 and x.shape[0]:
            return x[:1].expand(x.shape)
        return x

    def spoil(self, x: Tensor) -> Tensor:
        """In a hostile call, at times something that is no tensor for this op."""
        if not self.hostile or self.chance(0.9):
            return x
        way = self.number(0, 5)
        if way == 0:
            return torch._efficientzerotensor(x.shape, dtype=x.dtype)
        if way == 1:
            x = torch.cat([x.reshape(-1), x.reshape(-1)])[x.numel() :].view(x.shape)
            x.untyped_storage().resize_(0)
            return x
        if way == 2:
            return x.to("meta")
        if way == 3:
            return x.to(torch.int16)
        return x.unsqueeze(0) if way == 4 else x.reshape(-1).repeat(2)  # no fewer: set bits would be left over

    def whole(self, n: int) -> int:
        """A size as it is, in a hostile call at times another."""
        return self.one_of(HOSTILE) if self.hostile and self.chance(0.1) else n

    def bits(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < 0.5

    def words(self, *lead: int, k: int) -> Tensor:
        return packing.to_words(packing.pack_bits(self.bits(*lead, k)), k)

    def vector(self, n: int, share: float = 0.5) -> Tensor:
        return self.floats(n if self.chance(share) else 1)

    def step(self) -> Tensor:
        return self.floats(1) if self.chance(0.3) else self.spoil(torch.rand(1, generator=self.generator) + 0.01)

    def weight(self, k: int) -> tuple:
        n = self.size()
        bias = self.floats(n) if self.chance(0.5) else None
        return self.spoil(packing.to_lanes(self.words(n, k=k))), self.whole(n), self.vector(n), bias


def threshold_pack(draw: Draw) -> tuple:
    k = draw.size()
    return draw.floats(*draw.lead(), k, kind=True), draw.vector(k), draw.chance(0.5)


def binary_linear(draw: Draw) -> tuple:
    k = draw.size()
    return draw.floats(*draw.lead(), k, kind=True), draw.vector(k), draw.chance(0.5), *draw.weight(k)


def linear_of_bits(draw: Draw) -> tuple:
    k = draw.size()
    words = draw.lay_out(draw.words(*draw.lead(), k=k))
    return draw.spoil(words), draw.whole(k), draw.chance(0.5), *draw.weight(k)


def bits_of_linear(draw: Draw) -> tuple:
    call = linear_of_bits(draw)
    return *call, draw.chance(0.5), draw.vector(call[5].numel()), draw.chance(0.5)


def integer_linear(draw: Draw) -> tuple:
    k = draw.size()
    x, bits = draw.floats(*draw.lead(), k, kind=True), draw.one_of((1, 2, 4, 8))
    return x, draw.vector(k), draw.step(), draw.whole(bits), draw.chance(0.5), *draw.weight(k)


def convolution(draw: Draw) -> tuple:
    space, groups = draw.number(1, 2), draw.one_of((1, 1, 1, 2, 3))
    per, outputs = draw.one_of((1, 1, 2, 5, 16, 33)), groups * draw.number(1, 9)
    kernel = [draw.number(1, 4) for _ in range(space)]
    around = [draw.number(0, 3) for _ in range(2 * space)]
    if draw.chance(0.5):
        around = [n for n in around[::2] for _ in range(2)]
    dilation = [draw.number(1, 3) for _ in range(space)]
    stride = [draw.one_of((1, 1, 2, 3, 50)) for _ in range(space)]
    lengths = [draw.number(0 if draw.chance(0.1) else 1, 12) for _ in range(space)]
    if draw.hostile:
        at, i = draw.one_of((kernel, around, dilation, stride)), draw.number(0, space - 1)
        at[i] = draw.one_of([n for n in HOSTILE if at is not around or n != 2**31 - 1])
        if draw.chance(0.3):
            kernel[i], dilation[i] = 1, draw.one_of(HOSTILE)
    k = per * (kernel[0] if space == 1 else kernel[0] * kernel[1])
    k = k if 0 < k < 2000 else per
    lanes, scale = packing.to_lanes(draw.words(outputs, k=k)), draw.vector(outputs)
    bias = draw.floats(outputs) if draw.chance(0.5) else None
    x = draw.floats(draw.number(0, 2), per * groups, *lengths, kind=True)
    bits, offset = draw.one_of((1, 1, 2, 4, 8)), draw.vector(per * groups)
    return (
        x, offset, draw.step(), bits, draw.chance(0.5), draw.spoil(lanes), draw.whole(outputs), kernel, stride, around,
        dilation, draw.whole(groups), scale, bias,
    )  # fmt: skip


def _attention(draw: Draw) -> tuple:
    batch, heads, queries, keys = draw.number(0, 2), draw.number(1, 3), draw.number(0, 20), draw.number(0, 40)
    d, dv = draw.size(), draw.size()
    sizes = ((queries, d), (keys, d), (keys, dv))
    q, k, v = (draw.floats(batch, heads, length, size, kind=True) for length, size in sizes)
    keep = draw.lay_out(draw.bits(*(n if draw.chance(0.5) else 1 for n in (batch, heads, queries)), keys))
    return q, k, v, draw.spoil(keep) if draw.chance(0.6) else None


def binary_attention_rowmax(draw: Draw) -> tuple:
    call = _attention(draw)
    margin = torch.tensor(draw.one_of((0, 1, 5, -1, 2**62, 2**63 - 1, -(2**63))))
    return *call, draw.spoil(margin), draw.floats(1)


def binary_attention_table(draw: Draw) -> tuple:
    call = _attention(draw)
    table = torch.randint(0, 4097, (call[0].shape[-1] + 1,), generator=draw.generator).sort(descending=True)[0]
    ratio = torch.tensor(draw.one_of((0, 300_000, 2**24, 2**40)))
    return *call, draw.spoil(table), draw.spoil(ratio), draw.floats(1)


def embedding(draw: Draw) -> tuple:
    rows, bits, dim = draw.number(1, 9), draw.one_of((1, 2, 4, 8)), draw.size()
    packed = packing.pack_bits(draw.bits(bits * rows, dim))
    indices = torch.randint(0, rows, draw.lead(), generator=draw.generator)
    if indices.numel() and draw.chance(0.1):
        indices.view(-1)[0] = draw.one_of((-1, rows, 2**62, -(2**63)))
    elif draw.chance(0.3):
        indices = indices.to(torch.int32)
    return draw.spoil(draw.lay_out(indices)), draw.spoil(packed), draw.whole(bits), draw.whole(dim), draw.vector(rows)


def elastic_levels(draw: Draw) -> tuple:
    """Of training: (function, x, shift, alpha, range); torch's own ops run there, which read tensors without memory."""
    draw.hostile = False
    k = draw.size()
    x = draw.lay_out(draw.floats(*draw.lead(), k))
    alpha = draw.one_of((torch.tensor(0.5), draw.floats(1).view(()).abs()))
    call = draw.one_of((signed_levels, unit_levels, integer_levels))
    levels = draw.one_of(((-2, 1), (0, 3), (-128, 127), (0, 255))) if call is integer_levels else ()
    return call, x, draw.vector(k), alpha, *levels


OPS: tuple[Callable[[Draw], tuple], ...] = (
    threshold_pack, binary_linear, linear_of_bits, bits_of_linear, integer_linear, convolution,
    binary_attention_rowmax, binary_attention_table, embedding, elastic_levels,
)  # fmt: skip


def outcome(op: Callable[[Draw], tuple], seed: int, backend: str):
    """What a backend makes of a call: its tensors, or the kind of error."""
    arguments = op(Draw(seed))
    call = getattr(operators, op.__name__, lambda function, *rest: function(*rest))
    try:
        with ops.use_backend(backend), torch.no_grad():
            result = call(*arguments)
    except (ValueError, IndexError) as error:  # nothing else is an answer
        return type(error)
    return result if isinstance(result, tuple) else (result,)


def agree(expected, got) -> bool:
    if isinstance(expected, type) or isinstance(got, type):
        return expected is got
    return all(
        a.shape == b.shape and a.dtype == b.dtype and (a.is_meta or torch.equal(a.isnan(), b.isnan()))
        and (a.is_meta or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)))
        for a, b in zip(expected, got, strict=True)
    )  # fmt: skip


def check(op: Callable[[Draw], tuple], seeds: range, backend: str = "native") -> Counter:
    """How the calls ended on that backend and the instruction set in use; AssertionError names a seed that differs."""
    ends = Counter()
    for seed in seeds:
        expected = outcome(op, seed, "naive")
        if op is elastic_levels and backend == "triton" and isinstance(expected, type):
            continue  # NaN stops the device there, and the interpreter drops the assertion
        got = outcome(op, seed, backend)
        assert agree(expected, got), f"{op.__name__}, seed {seed}: {backend} gives {got}, the definition {expected}"
        ends[got.__name__ if isinstance(got, type) else "equal"] += 1
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--backend", choices=("native", "triton"), default="native")
    given = parser.parse_args()
    for name in library.instruction_sets() if given.backend == "native" else [None]:
        if name:
            library.use_instruction_set(name)
        for op in OPS:
            ends = check(op, range(given.first, given.first + given.count), given.backend)
            print(name or given.backend, op.__name__, dict(ends), flush=True)


if __name__ == "__main__":
    main()
