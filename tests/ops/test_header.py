"""bitquant.h serves a plain C program, and fresh memory from malloc never shows in a result."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitquant.ops import library

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "bitquant" / "ops" / "cpu"

pytestmark = pytest.mark.skipif(library.unavailable_reason() is not None, reason=str(library.unavailable_reason()))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_a_c_program_uses_the_library(tmp_path):
    built, program = Path(library.load().library._name), tmp_path / "program"
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    linked = [str(built), f"-Wl,-rpath,{built.parent}"]
    subprocess.run(["cc", *warnings, f"-I{HEADERS}", str(HERE / "header.c"), *linked, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_scratch_memory_is_never_read_before_it_is_written():
    tests = [f"test_native.py::{test}" for test in ("test_linear_and_pack", "test_integer_linear", "test_attention")]
    tests += [f"test_native_convolution.py::{test}" for test in ("test_memory_layouts_and_dtypes", "test_blocks")]
    files = [f"{HERE}/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-k", "not 1000 and not 2100", *files]
    done = subprocess.run(command, env=os.environ | {"MALLOC_PERTURB_": "173"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
