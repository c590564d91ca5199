"""The native kernels of training quantizers: levels and input gradients equal plain torch, sums over rows are close."""

import pytest
import torch

from bitquant import ops
from bitquant.ops import library
from bitquant.quantizers import integer_levels, signed_levels, unit_levels

FUNCTIONS = {
    "signed": signed_levels,
    "smooth": lambda x, shift, alpha: signed_levels(x, shift, alpha, smooth=True),
    "unit": unit_levels,
    "2 bits": lambda x, shift, alpha: integer_levels(x, shift, alpha, -2, 1),
    "4 bits": lambda x, shift, alpha: integer_levels(x, shift, alpha, -8, 7),
    "8 bits": lambda x, shift, alpha: integer_levels(x, shift, alpha, 0, 255),
}


def trained(function, backend, x, shift, alpha, grad):
    """Levels and the gradients of the three arguments."""
    leaves = [t.clone().requires_grad_() for t in (x, shift, alpha)]
    with ops.use_backend(backend):
        levels = function(*leaves)
        levels.backward(grad)
    return [levels.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize("shape", [(1, 1), (5,), (3, 63), (2, 7, 100), (40, 1000), (1000, 3)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_native_equals_plain(isa, poison, function, shape, per_channel):
    torch.manual_seed(0)
    alpha = torch.tensor(0.7)
    x, grad = torch.randn(shape), torch.randn(shape)
    shift = 0.3 * torch.randn(shape[-1]) if per_channel else torch.tensor(0.1)
    x.view(-1)[0] = -shift.view(-1)[0]  # a tie of the signed set
    x.view(-1)[-1] = alpha / 2 - shift.view(-1)[-1]  # and of the unit set
    plain, native = (trained(function, backend, x, shift, alpha, grad) for backend in ("naive", "native"))
    assert torch.equal(native[0], plain[0]) and torch.equal(native[1], plain[1])
    torch.testing.assert_close(native[2], plain[2], rtol=1e-4, atol=1e-4)
    if plain[3] is not None:
        torch.testing.assert_close(native[3], plain[3], rtol=1e-4, atol=1e-3)


def test_layouts_that_are_not_dense(isa, poison):
    torch.manual_seed(0)
    x, shift, alpha = torch.randn(30, 8).T, torch.randn(60)[::2], torch.tensor(0.5)
    grad = torch.ones(1, 1).expand(8, 30)
    plain, native = (trained(signed_levels, backend, x, shift, alpha, grad) for backend in ("naive", "native"))
    assert all(torch.equal(a, b) for a, b in zip(native[:2], plain[:2], strict=True))
    torch.testing.assert_close(native[2], plain[2])


def test_any_number_of_threads_gives_the_same(isa):
    torch.manual_seed(0)
    x, shift, alpha, grad = torch.randn(50, 3072), torch.randn(3072), torch.tensor(0.5), torch.randn(50, 3072)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(trained(FUNCTIONS["8 bits"], "native", x, shift, alpha, grad))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", ["native", "naive"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_nan_is_refused(backend, function):
    if backend == "native" and library.unavailable_reason():
        pytest.skip(library.unavailable_reason())
    x = torch.zeros(3, 100)
    x[2, 97] = torch.nan
    with ops.use_backend(backend), pytest.raises(ValueError, match="NaN reached a binarizer"):
        function(x, torch.zeros(100), torch.tensor(0.5))


def test_nan_is_refused_where_the_levels_are_given():
    with pytest.raises(ValueError, match="NaN reached a binarizer"):
        unit_levels(torch.full((2, 3), torch.nan), torch.zeros(()), torch.tensor(0.5), torch.ones(2, 3, dtype=bool))


@pytest.mark.parametrize("backend", ["native", "naive"])
def test_other_dtypes_and_views(backend):
    if backend == "native" and library.unavailable_reason():
        pytest.skip(library.unavailable_reason())
    torch.manual_seed(0)
    x, shift, alpha = torch.randn(7, 30), torch.randn(30), torch.tensor(0.5)
    with ops.use_backend("naive"):
        expected = [integer_levels(x, shift.to(t), alpha.to(t), -8, 7) for t in (torch.bfloat16, torch.float64)]
        negative = signed_levels(-x, shift, alpha)
    with ops.use_backend(backend):
        found = [integer_levels(x, shift.to(t), alpha.to(t), -8, 7) for t in (torch.bfloat16, torch.float64)]
        assert torch.equal(signed_levels(torch.complex(x, x).conj().imag, shift, alpha), negative)
        with torch.device("meta"):
            assert torch.equal(signed_levels(-x, shift, alpha), negative)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_second_derivatives_and_batched_gradients_are_plain_torch(isa):
    x, alpha = torch.randn(4, 6, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    with ops.use_backend("native"):
        levels = unit_levels(x, torch.zeros(6), alpha)
        (first,) = torch.autograd.grad(levels.sum(), alpha, create_graph=True)
        assert first.requires_grad
        rows = torch.autograd.grad(levels, x, torch.eye(24).view(24, 4, 6), is_grads_batched=True)[0]
    assert rows.shape == (24, 4, 6)
