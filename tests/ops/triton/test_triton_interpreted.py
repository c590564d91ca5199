"""Every kernel equals its definition. Triton's interpreter is chosen before triton is imported, so in a process of its
own: ``TRITON_INTERPRET=1 pytest tests/ops/triton/interpreted/*.py`` shows the cases one by one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitquant.ops.triton import device

CASES = sorted((Path(__file__).parent / "interpreted").glob("*.py"))


@pytest.mark.skipif("triton is not installed" in (device.unavailable_reason() or ""), reason="triton is not installed")
@pytest.mark.parametrize("file", CASES, ids=[case.stem for case in CASES])
def test_kernels_equal_their_definitions(file):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
