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


def run_programs(folder, *, prefix="", flags=(), run=(), settings=()):
    """Build the library, shapes.c and hostile.c with the compilers of that prefix, and run both."""
    root, library = HERE.parents[1], folder / "libbitquant_cpu.so"
    options = [f"-DCMAKE_CXX_COMPILER={prefix}g++", f"-DCMAKE_CXX_FLAGS_DEBUG={' '.join(flags)}"]
    commands = [
        ["cmake", "-S", str(root), "-B", str(folder), *options, "-DCMAKE_BUILD_TYPE=Debug", *settings],
        ["cmake", "--build", str(folder)],
    ]
    compiler = [f"{prefix}gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", *flags, f"-I{HEADERS}"]
    linked = [str(library), f"-Wl,-rpath,{folder}", "-lm"]
    for name in ("shapes", "hostile"):
        commands.append([*compiler, str(HERE / f"{name}.c"), *linked, "-o", str(folder / name)])
        commands.append([*run, str(folder / name)])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def missing(*programs):
    return ", ".join(program for program in programs if not shutil.which(program))


@pytest.mark.skipif(bool(missing("cmake", "gcc", "g++")), reason=f"not installed: {missing('cmake', 'gcc', 'g++')}")
@pytest.mark.skipif(sys.platform != "linux", reason="sanitizers as GCC has them on Linux")
def test_odd_and_hostile_shapes_under_address_and_undefined_behaviour_sanitizers(tmp_path):
    """With the tile instructions emulated: no processor at hand may have them."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize=null,object-size"]
    report = run_programs(tmp_path, flags=flags, settings=["-DBITQUANT_EMULATE_AMX=ON"])
    ran = [line.split(":")[0] for line in report.splitlines()]
    assert [name for name in ran if name != "amx"] == [name for name in library.instruction_sets() if name != "amx"]
    assert "amx" in ran or "avx512" not in ran


ARM = ("cmake", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "qemu-aarch64")


@pytest.mark.skipif(bool(missing(*ARM)), reason=f"not installed: {missing(*ARM)}")
def test_odd_and_hostile_shapes_on_an_emulated_arm_processor(tmp_path):
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    report = run_programs(tmp_path, prefix="aarch64-linux-gnu-", run=emulator, settings=system)
    assert [line.split(":")[0] for line in report.splitlines()] == ["neon", "portable"]


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_scratch_memory_is_never_read_before_it_is_written():
    tests = [f"test_native.py::{test}" for test in ("test_linear_and_pack", "test_integer_linear", "test_attention")]
    tests += [f"test_native_convolution.py::{test}" for test in ("test_memory_layouts_and_dtypes", "test_blocks")]
    files = [f"{HERE}/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-k", "not 1000 and not 2100", *files]
    done = subprocess.run(command, env=os.environ | {"MALLOC_PERTURB_": "173"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
