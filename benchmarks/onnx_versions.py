"""Whether exported files run alike in other versions of ONNX Runtime.

    python -m benchmarks.onnx_versions FILE.onnx [FILE.onnx ...] --version 1.23.2 [--inputs FILE.npz]

Makes a virtual environment with that version, runs every file there and here on the same input, and compares:
the share of outputs that are equal bit for bit, and the cosine.
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


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--version", default="1.23.2", show_default=True, help="Of onnxruntime, beside the installed one.")
@click.option("--inputs", type=click.Path(exists=True), help="Arrays by input name, in place of random ones.")
@click.option("--length", default=32, show_default=True, help="Of free dimensions; an input of samples needs more.")
def main(files, version, inputs, length):
    """Compare two versions of ONNX Runtime on exported files."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        venv.create(folder / "venv", with_pip=True)
        other = folder / "venv" / "bin" / "python"
        subprocess.run([other, "-m", "pip", "install", "-q", f"onnxruntime=={version}"], check=True)
        for file in files:
            np.savez(folder / "in.npz", **(np.load(inputs) if inputs else random_inputs(file, length)))
            names = [
                run(p, file, folder / "in.npz", folder / f"{i}.npz") for i, p in enumerate((sys.executable, other))
            ]
            first, second = (list(np.load(folder / f"{i}.npz").values())[0].astype(np.float64).ravel() for i in (0, 1))
            cosine = first @ second / np.sqrt((first @ first) * (second @ second))
            equal = np.mean(first == second)
            print(f"{file.name}: {' and '.join(names)}: {equal:.1%} of outputs equal, cosine {cosine:.6f}", flush=True)


if __name__ == "__main__":
    main()
