"""Whether exported files run alike in other versions of ONNX Runtime.

    python -m benchmarks.onnx_versions FILE.onnx [FILE.onnx ...] --version 1.23.2

Makes a virtual environment with that version, runs every file there and here on the same input, and compares all of its
outputs: the share that is equal bit for bit, the largest difference, and the cosine. The input of FILE.onnx is
FILE.npz, arrays by input name, where that lies beside it, else random.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import click
import numpy as np
import onnxruntime

RUN = """
import json, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = np.load(sys.argv[2])
outputs = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
np.savez(sys.argv[3], *outputs)
print(json.dumps(onnxruntime.__version__))
"""


def random_inputs(file: Path, length: int = 32) -> dict[str, np.ndarray]:
    """Random values for every input; masks are all ones, free dimensions after the first are ``length``."""
    generator = np.random.default_rng(0)
    inputs = {}
    for value in onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).get_inputs():
        shape = [n if isinstance(n, int) else (2 if i == 0 else length) for i, n in enumerate(value.shape)]
        if value.type == "tensor(float)":
            inputs[value.name] = generator.normal(size=shape).astype(np.float32)
        else:
            inputs[value.name] = np.ones(shape, bool if value.type == "tensor(bool)" else np.int64)
    return inputs


def run(python: str | Path, file: Path, inputs: Path, outputs: Path) -> str:
    """Run one file with one interpreter; its ONNX Runtime version."""
    done = subprocess.run([str(python), "-c", RUN, file, inputs, outputs], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{file} does not run with {python}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def outputs(python: str | Path, file: Path, inputs: Path, to: Path) -> tuple[str, np.ndarray]:
    """Run one file with one interpreter: its version of ONNX Runtime, and all outputs in a row, float64."""
    version = run(python, file, inputs, to)
    with np.load(to) as arrays:
        return version, np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--version", default="1.23.2", show_default=True, help="Of onnxruntime, beside the installed one.")
@click.option("--length", default=32, show_default=True, help="Of free dimensions of random inputs.")
def main(files, version, length):
    """Compare two versions of ONNX Runtime on exported files."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        venv.create(folder / "venv", with_pip=True)
        other = folder / "venv" / "bin" / "python"
        subprocess.run([other, "-m", "pip", "install", "-q", f"onnxruntime=={version}"], check=True)
        for file in files:
            inputs = file.with_suffix(".npz")
            if not inputs.exists():
                inputs = folder / "in.npz"
                np.savez(inputs, **random_inputs(file, length))
            (newer, first), (older, second) = (
                outputs(python, file, inputs, folder / "out.npz") for python in (sys.executable, other)
            )
            cosine = first @ second / np.sqrt((first @ first) * (second @ second))
            equal, apart = np.mean(first == second), np.abs(first - second).max()
            found = f"{equal:.1%} of {first.size} outputs equal, at most {apart:.1e} apart, cosine {cosine:.6f}"
            print(f"{file.name}: {newer} and {older}: {found}", flush=True)


if __name__ == "__main__":
    main()
