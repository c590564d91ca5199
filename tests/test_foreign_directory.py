"""No code of the current directory runs: ``cd model; bitquant quantize .`` must be safe in a stranger's model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import save_file

import bitquant
from bitquant.fresh import _command

# what bitquant and its dependencies import, at the top and late
MODULES = "safetensors click numpy torch tabulate transformers tokenizers soundfile json subprocess bitquant"
HOME = str(Path(bitquant.__file__).parents[1])


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """The current directory, full of modules that leave a trace when they run; the path of the trace."""
    trace = tmp_path / "was-run"
    folder = tmp_path / "model"
    folder.mkdir()
    for name in MODULES.split():
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write({name!r} + ' ')\nraise SystemExit(3)\n")
    monkeypatch.chdir(folder)
    return trace


def test_the_fresh_process_imports_nothing_from_there(trapped, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", os.getcwd(), *sys.path])
    done = subprocess.run(_command(str(tmp_path)), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "request.json" in done.stderr.splitlines()[-1]
    assert not trapped.exists()


@pytest.mark.parametrize("start", [["-m", "bitquant"], [shutil.which("bitquant")]])
def test_the_command_imports_nothing_from_there(trapped, start):
    if start == [None]:
        pytest.skip("the command is not installed")
    (Path.cwd() / "bitquant.py").unlink()  # python -m itself looks there for what it is to run
    done = subprocess.run([sys.executable, *start, "quantize", ".", "--data", ".", "--out", "out"], check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "holds no file of a known kind" in done.stderr, done.stderr
    assert not trapped.exists()


def test_quantize_there_with_a_factory(trapped, tmp_path):
    """From the command to the fresh process; the factory lies in the current directory too."""
    import numpy as np

    torch.manual_seed(0)
    save_file(tiny_models.mlp().state_dict(), "weights.safetensors")
    shutil.copy(tiny_models.__file__, "mine.py")
    np.savez("rows.npz", features=np.random.default_rng(0).normal(size=(100, 16)))
    command = [sys.executable, "-c", "import sys; sys.path[:] = [p for p in sys.path if p]; "
               "from bitquant.cli import main; main()", "quantize", "mine:mlp", "--weights", "weights.safetensors",
               "--data", "rows.npz", "--out", "out", "--steps", "0", "--json"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": HOME}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["identical_after_reload"] is True
    assert not trapped.exists()


def test_a_factory_takes_no_installed_modules_place(trapped, tmp_path):
    code = "from bitquant.sources.factory import make; make('mine:mlp'); import click, soundfile, sys; "
    code += "assert sys.path[-1] == __import__('os').getcwd()"
    shutil.copy(tiny_models.__file__, "mine.py")
    code = f"import sys; sys.path[:] = [p for p in sys.path if p] + [{HOME!r}]; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not trapped.exists()


def test_no_native_code_from_there(tmp_path, monkeypatch):
    from bitquant.ops import library

    folder = tmp_path / "bitquant" / "ops"
    folder.mkdir(parents=True)
    (folder / library.FILE_NAME).write_bytes(b"a stranger's")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library.sys, "path", ["", str(tmp_path)])
    monkeypatch.setattr(sys.modules["bitquant.ops"], "__path__", [])
    library.load.cache_clear()
    try:
        assert "not part of this installation" in library.load().reason
    finally:
        library.load.cache_clear()
