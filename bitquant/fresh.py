"""Measures a saved checkpoint in a process of its own: what a user gets who has only the directory."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bitquant.checkpoint import load
from bitquant.data import describe, restore
from bitquant.fidelity import fidelity, outputs
from bitquant.measure import times
from bitquant.sources import open_source


def measure_fresh(checkpoint, source, data, held_out, *, teacher, student, batch_size):
    """Loads the checkpoint in a new process and compares it with the float model.

    Args:
        checkpoint (Path): written by ``save``, with its tokenizer or preprocessor.
        source (Source): the float model, loaded again for the time before; its factory is called again too.
        data (Data), held_out (list): the samples measured on, their kind.
        teacher (dict), student (dict): ``outputs`` of the float model and of the student that was saved.
        batch_size (int): as used for these.

    Returns:
        dict: ``fidelity`` to the teacher, ``identical`` (whether every bit equals the student's), ``milliseconds``.

    Raises:
        ChildProcessError: the process failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_file(teacher, Path(folder) / "teacher.safetensors")
        save_file(student, Path(folder) / "student.safetensors")
        request = {
            "checkpoint": str(Path(checkpoint).resolve()),
            "source": [source.name, str(source.weights[0]) if source.factory else None],
            "held_out": describe(data, held_out),
            "batch_size": batch_size,
        }
        (Path(folder) / "request.json").write_text(json.dumps(request), encoding="utf-8")
        done = subprocess.run(_command(folder), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ChildProcessError(f"{checkpoint} is saved, but a fresh process could not measure it: {last}")
        return json.loads(done.stdout)


def _command(folder):
    """Starts ``_answer``. Not as ``python -m``, which would first look for every module in the current directory: that
    may be a stranger's model. What this process imports from, the new one does too, but for that."""
    here, home = os.path.realpath(os.curdir), str(Path(__file__).parents[1])
    places = [entry for entry in sys.path if entry and os.path.realpath(entry) != here]
    code = f"import sys; sys.path[:] = {[*places, home]!r}; from bitquant.fresh import main; main(sys.argv[1])"
    return [sys.executable, "-c", code, folder]


def main(folder):
    """Answers the ``request.json`` of a folder, which holds the expected outputs too, as JSON on stdout."""
    print(json.dumps(_answer(Path(folder))))


def _answer(folder):
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    teacher, student = (load_file(folder / f"{name}.safetensors") for name in ("teacher", "student"))
    source = open_source(*request["source"])
    directory = Path(request["checkpoint"])
    packed = load(directory, model=source.model if source.factory else None)
    # inputs are made with what the checkpoint brings along
    data = restore(request["held_out"], dataclasses.replace(source, directory=directory))
    ours = outputs(packed, data.batches(data.samples, batch_size=request["batch_size"]))
    return {
        "fidelity": fidelity(teacher, ours),
        "identical": all(torch.equal(ours[name], value) for name, value in student.items()),
        "milliseconds": times({"before": source.model, "after": packed}, data.timings()),
    }
