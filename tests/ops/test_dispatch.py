"""Which backend runs, and what is said where one cannot."""

import os
import subprocess
import sys

import pytest
import torch

from bitquant import ops
from bitquant.ops import dispatch, library, naive, native

needs_native = pytest.mark.skipif(library.unavailable_reason() is not None, reason=str(library.unavailable_reason()))


@pytest.fixture
def no_library(monkeypatch):
    """As installed without a compiler."""
    monkeypatch.setattr(library, "FILE_NAME", "libmissing.so")
    monkeypatch.setattr(dispatch, "_automatic", {})
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def one_op(**environment):
    """stdout or the last line of stderr of a fresh process that runs one op."""
    code = (
        "import torch; from bitquant import ops; from bitquant.ops import dispatch, library;"
        "ops.threshold_pack(torch.ones(3), torch.zeros(1), False);"
        "print(dispatch.current().__name__.rpartition('.')[2], library.instruction_set())"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("BITQUANT_")} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_use_backend_holds_inside_only():
    outside = dispatch.current()
    with ops.use_backend("naive"):
        assert dispatch.current() is naive
    assert dispatch.current() is outside


def test_unknown_backend():
    with (
        pytest.raises(ValueError, match="unknown backend 'cuda': choose one of native, triton, naive"),
        ops.use_backend("cuda"),
    ):
        pass


@needs_native
def test_backends_say_what_they_run_on():
    assert dispatch.current() is native
    assert {b.name for b in ops.backends() if b.available and "cpu" in b.devices} == {"native", "naive"}
    assert library.instruction_set() in ops.backends()[0].reason


@pytest.mark.usefixtures("no_library")
def test_without_a_library_naive_runs_and_native_says_why(random):
    assert dispatch.current() is naive
    backend = ops.backends()[0]
    assert not backend.available and "without a working C++17 compiler" in backend.reason
    with pytest.raises(ops.BackendUnavailable, match="backend 'native' cannot run"), ops.use_backend("native"):
        pass
    assert library.instruction_sets() == [] and library.instruction_set() is None
    assert torch.equal(ops.threshold_pack(torch.ones(1, 3), torch.zeros(1), False)[0], torch.tensor([[7]]).int())


@pytest.mark.parametrize("content", (b"", b"not a library"))
def test_a_damaged_library_is_a_reason_not_a_crash(monkeypatch, tmp_path, content):
    (tmp_path / library.FILE_NAME).write_bytes(content)
    monkeypatch.setattr(sys.modules["bitquant.ops"], "__path__", [str(tmp_path)])
    library.load.cache_clear()
    try:
        assert "cannot be loaded" in library.unavailable_reason()
    finally:
        library.load.cache_clear()


@needs_native
def test_the_environment_chooses():
    assert one_op() == f"native {library.instruction_sets()[0]}"
    assert one_op(BITQUANT_BACKEND="naive").startswith("naive")
    assert one_op(BITQUANT_ISA="portable") == "native portable"
    assert "backend 'triton' " in one_op(BITQUANT_BACKEND="triton")  # no kernel here, or not for CPU tensors
    assert "unknown backend 'gpu'" in one_op(BITQUANT_BACKEND="gpu")
    refused = one_op(BITQUANT_ISA="sse9")
    assert "BITQUANT_ISA: instruction set 'sse9' is unknown or not supported" in refused and "portable" in refused


@needs_native
def test_unknown_instruction_set():
    before = library.instruction_set()
    with pytest.raises(ValueError, match="instruction set 'sse9' is unknown"):
        library.use_instruction_set("sse9")
    assert library.instruction_set() == before
