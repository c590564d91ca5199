"""Threads change the time, never the result, and torch's setting and pool are the only ones."""

import subprocess
import sys
import threading

import pytest
import torch

from bitquant.ops import native

pytestmark = pytest.mark.usefixtures("isa", "poison")


@pytest.fixture
def calls(random):
    """Calls with enough work for several threads on every axis they may split."""
    columns = 6000
    _, lanes = random.weight(columns, 1600)
    zero, one, bias = torch.zeros(1), torch.ones(1), torch.ones(columns)
    q, k, v = (random.heads(2, 1, 900, 64) for _ in range(3))
    keep = random.bools(2, 1, 1, 900)
    table = (4096 * torch.exp(-0.02 * torch.arange(65))).round().long()
    packed, scale = torch.zeros(9, 125, dtype=torch.uint8), random.positive(9)
    wide = random.floats(700, 900)
    speech, (_, taps) = random.floats(1, 64, 3000), random.weight(80, 3 * 64)
    speech[..., 2000:2500] = 0
    _, alone = random.weight(64, 31)

    def linear(x):
        return lambda: native.binary_linear(x, zero, False, lanes, columns, one, bias)

    def convolution(bits, signed, *weight):
        return lambda: native.convolution(speech, zero, one, bits, signed, *weight, one, None)

    return [
        *(linear(random.floats(m, 1600)) for m in (1, 7, 150)),
        lambda: native.integer_linear(wide, zero, one, 4, True, lanes[:, :29], columns, one, bias),
        convolution(1, True, taps, 80, [3], [1], [1, 1], [1], 1),
        convolution(2, False, taps, 80, [3], [2], [0, 2], [1], 1),
        convolution(1, True, alone, 64, [31], [1], [15, 15], [1], 64),
        lambda: native.binary_attention_rowmax(q, k, v, keep, torch.tensor(6), one),
        lambda: native.binary_attention_table(q, k, v, keep, table, torch.tensor(1 << 14), one),
        lambda: native.embedding(torch.arange(2000) % 9, packed, 1, 1000, scale),
        lambda: native.threshold_pack(wide, zero, True)[0],
    ]


@pytest.fixture
def with_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same(calls, with_threads):
    with_threads(1)
    alone = [call() for call in calls]
    for threads in (2, 3):
        with_threads(threads)
        assert all(torch.equal(call(), expected) for call, expected in zip(calls, alone, strict=True))


def test_safe_from_several_python_threads(calls, with_threads):
    with_threads(1)
    expected = [call() for call in calls]
    wrong = []

    def work():
        wrong.extend(i for i, call in enumerate(calls) if not torch.equal(call(), expected[i]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


ALONE = """
import torch
from bitquant import ops
from bitquant.ops import library
torch.set_num_threads(2)
torch.randn(600, 600) @ torch.randn(600, 600)
with ops.use_backend("native"):
    ops.threshold_pack(torch.randn(600, 600), torch.zeros(1), False)
print(len(library.openmp_runtimes()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_serves_torch_and_the_kernels():
    """In a process of their own: other packages bring runtimes with them."""
    alone = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == "1"
