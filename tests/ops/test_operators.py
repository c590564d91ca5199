"""The torch operators: registration, fake kernels, autocast, arguments refused."""

import pytest
import torch

from bitquant import ops, packing

LINEAR = torch.ops.bitquant.binary_linear.default


def linear_arguments(random, k=70, n=20):
    return random.floats(k) / 9, False, random.weight(n, k)[1], n, random.positive(n), random.floats(n)


def attention_arguments(random):
    return random.heads(2, 3, 5, 9), random.heads(2, 3, 7, 9), random.heads(2, 3, 7, 4), random.bools(2, 1, 1, 7)


@pytest.mark.parametrize("backend", [b.name for b in ops.backends() if b.available and "cpu" in b.devices])
def test_opcheck(random, backend):
    one = torch.ones(1)
    cases = {
        "threshold_pack": (random.floats(2, 3, 40), torch.zeros(1), True),
        "binary_linear": (random.floats(2, 3, 70), *linear_arguments(random)),
        "integer_linear": (random.floats(2, 3, 70), random.floats(70), one, 4, *linear_arguments(random)[1:]),
        "linear_of_bits": (torch.tensor([[5, -1, 7]]).int(), 70, *linear_arguments(random)[1:]),
        "bits_of_linear": (
            torch.tensor([[5, -1, 7]]).int(),
            70,
            *linear_arguments(random)[1:],
            True,
            random.floats(20),
            False,
        ),
        "convolution": (
            random.floats(2, 6, 40),
            random.floats(6),
            None,
            1,
            True,
            random.weight(8, 15)[1],
            8,
            [5],
            [2],
            [1, 2],
            [1],
            2,
            one,
            random.floats(8),
        ),
        "binary_attention_rowmax": (*attention_arguments(random), torch.tensor(3), one),
        "binary_attention_table": (*attention_arguments(random), torch.arange(10).flip(0), torch.tensor(99), one),
        "embedding": (torch.tensor([[0, 2]]), packing.pack_bits(random.bools(6, 11)), 2, 11, one),
    }
    with ops.use_backend(backend):
        for name, arguments in cases.items():
            torch.library.opcheck(getattr(torch.ops.bitquant, name).default, arguments)


def test_export_keeps_the_operator_and_a_dynamic_batch(random):
    arguments = linear_arguments(random)

    class Layer(torch.nn.Module):
        def forward(self, x):
            return ops.binary_linear(x, *arguments) + 1

    x = random.floats(4, 70)
    program = torch.export.export(Layer(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows", min=2)}})
    assert LINEAR in [node.target for node in program.graph.nodes]
    wider = random.floats(9, 70)
    assert torch.equal(program.module()(wider), Layer()(wider))


@pytest.mark.parametrize("backend", [b.name for b in ops.backends() if b.available and "cpu" in b.devices])
def test_autocast_leaves_the_product_exact(random, backend):
    x, arguments = random.floats(3, 1000), linear_arguments(random, k=1000)
    with ops.use_backend(backend):
        expected = ops.binary_linear(x, *arguments)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(ops.binary_linear(x, *arguments), expected)


def test_views_that_negate_lazily_are_resolved(random):
    x, arguments = random.floats(3, 70), linear_arguments(random)
    assert torch.equal(ops.binary_linear(torch._neg_view(x), *arguments), ops.binary_linear(-x, *arguments))


def swap(arguments, position, value):
    return (*arguments[:position], value, *arguments[position + 1 :])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(3, 70, dtype=torch.int32), "x must be a float tensor"),
        (0, torch.zeros(3, 0), "1 to 2\\^24 - 1 features"),
        (0, torch.zeros(()), "1 to 2\\^24 - 1 features"),
        (0, torch.zeros(3, 71), "threshold must be float32 \\[71\\] or \\[1\\]"),
        (0, torch.zeros(3, 69), "threshold must be"),
        (1, torch.zeros(70, dtype=torch.float64), "threshold must be float32"),
        (3, torch.zeros(2, 3, 16, dtype=torch.int64), "need int32 lanes \\(2, 3, 16\\)"),
        (3, torch.zeros(1, 3, 16, dtype=torch.int32), "need int32 lanes"),
        (4, 33, "70 -> 33 features need int32 lanes"),
        (4, 0, "features need int32 lanes"),
        (5, torch.zeros(19), "scale must be float32 \\[20\\] or \\[1\\]"),
        (6, torch.zeros(1), "bias must be float32 \\[20\\]"),
    ],
)
def test_linear_refuses(random, position, value, message):
    arguments = (random.floats(3, 70), *linear_arguments(random))
    with pytest.raises(ValueError, match=message):
        ops.binary_linear(*swap(arguments, position, value))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, torch.zeros(71), "threshold must be"),
        (2, None, "4-bit levels need a step"),
        (2, torch.ones(2), "step must be float32 \\[1\\]"),
        (3, 3, "bits must be 1, 2, 4, 8 or 32, got 3"),
        (6, 33, "need int32 lanes"),
    ],
)
def test_integer_linear_refuses(random, position, value, message):
    arguments = (random.floats(3, 70), torch.zeros(70), torch.ones(1), 4, *linear_arguments(random)[1:])
    with pytest.raises(ValueError, match=message):
        ops.integer_linear(*swap(arguments, position, value))


def test_sums_that_float32_cannot_hold_are_refused():
    x, lanes = torch.zeros(1, 1 << 17), torch.zeros(1, 1 << 12, 16, dtype=torch.int32)
    with pytest.raises(ValueError, match="131072 levels of 8 bits are not exact"):
        ops.integer_linear(x, torch.zeros(1), torch.ones(1), 8, True, lanes, 1, torch.ones(1), None)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(6, 40), "x must be a float tensor \\(B, C, T\\)"),
        (0, torch.zeros(2, 6, 2), "smaller than the kernel"),
        (1, torch.zeros(5), "offset must be float32 \\[6\\] or \\[1\\]"),
        (3, 2, "2-bit levels need a step"),
        (5, torch.zeros(2, 1, 16, dtype=torch.int32), "needs int32 lanes \\(1, 1, 16\\)"),
        (7, [5, 1], "x must be a float tensor"),
        (8, [0], "at least 1"),
        (9, [1], "1 strides and dilations and 2 paddings"),
        (9, [1, -1], "padding at least 0"),
        (11, 4, "cannot be split into 4 groups"),
    ],
)
def test_convolution_refuses(random, position, value, message):
    arguments = (
        random.floats(2, 6, 40), random.floats(6), None, 1, True, random.weight(8, 15)[1], 8, [5], [2], [1, 1], [1], 2,
        torch.ones(1), None,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ops.convolution(*swap(arguments, position, value))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 5, 9), "q must be a float tensor"),
        (0, torch.zeros(2, 3, 5, 8), "must agree"),
        (1, torch.zeros(1, 3, 7, 9), "must agree"),
        (2, torch.zeros(2, 3, 6, 4), "must agree"),
        (3, torch.zeros(2, 1, 1, 7), "keep must be bool"),
        (3, torch.zeros(2, 1, 1, 6, dtype=torch.bool), "broadcast to \\(2, 3, 5, 7\\)"),
        (3, torch.zeros(1, 2, 3, 5, 7, dtype=torch.bool), "broadcast to"),
        (4, torch.tensor(1.0), "margin must be int64"),
        (5, torch.ones(2), "scale must be float32 \\[1\\]"),
    ],
)
def test_attention_refuses(random, position, value, message):
    arguments = (*attention_arguments(random), torch.tensor(3), torch.ones(1))
    with pytest.raises(ValueError, match=message):
        ops.binary_attention_rowmax(*swap(arguments, position, value))


def test_table_attention_refuses_a_table_of_another_head_size(random):
    with pytest.raises(ValueError, match="table must be int64 with 10 elements"):
        ops.binary_attention_table(*attention_arguments(random), torch.arange(9), torch.tensor(1), torch.ones(1))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2), "indices must be int64 or int32"),
        (1, torch.zeros(6, 3, dtype=torch.uint8), "must be uint8 \\(2 \\* V, 2\\)"),
        (1, torch.zeros(5, 2, dtype=torch.uint8), "must be uint8 \\(2 \\* V, 2\\)"),
        (2, 3, "bits must be 1, 2, 4 or 8, got 3"),
        (3, 17, "must be uint8 \\(2 \\* V, 3\\)"),
        (4, torch.ones(2), "scale must be float32 \\[3\\] or \\[1\\]"),
    ],
)
def test_embedding_refuses(position, value, message):
    arguments = (torch.tensor([0, 2]), torch.zeros(6, 2, dtype=torch.uint8), 2, 11, torch.ones(3))
    with pytest.raises(ValueError, match=message):
        ops.embedding(*swap(arguments, position, value))


@pytest.mark.parametrize("backend", [b.name for b in ops.backends() if b.available and "cpu" in b.devices])
def test_nan_and_indices_are_refused_by_every_backend(random, backend):
    x = random.floats(3, 70)
    x[1, 68] = float("nan")
    with ops.use_backend(backend):
        with pytest.raises(ValueError, match="x holds NaN, which has no sign bit"):
            ops.binary_linear(x, *linear_arguments(random))
        for index in (-1, 3):
            with pytest.raises(IndexError, match="outside the embedding's 3 rows"):
                ops.embedding(torch.tensor(index), torch.zeros(6, 2, dtype=torch.uint8), 2, 11, torch.ones(3))
