"""Measures a saved checkpoint in a process of its own: what a user gets who has only the directory.

Run as ``python -m bitquant.fresh FOLDER``, where FOLDER holds ``request.json`` and ``embeddings.safetensors``.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bitquant.checkpoint import load
from bitquant.data import TextBatches
from bitquant.fidelity import embed, fidelity
from bitquant.measure import text_times
from bitquant.sources import load_source, load_tokenizer, read_config


def measure_fresh(checkpoint, source, held_out, *, teacher, student, batch_size, max_length):
    """Loads the checkpoint in a new process and compares it with the float model.

    Args:
        checkpoint (Path): written by ``save``, with a tokenizer.
        source (Path): directory of the float model, for the time before.
        held_out (list[str]): N sentences.
        teacher (Tensor): (N, D) embeddings of the float model.
        student (Tensor): (N, D) embeddings of the student that was saved.
        batch_size (int), max_length (int): as used for the embeddings.

    Returns:
        dict: ``fidelity`` to the teacher, ``identical`` (whether every bit equals the student's), ``milliseconds``.

    Raises:
        ChildProcessError: the process failed; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_file({"teacher": teacher, "student": student}, Path(folder) / "embeddings.safetensors")
        request = {
            "checkpoint": str(Path(checkpoint).resolve()),
            "source": str(Path(source).resolve()),
            "held_out": held_out,
            "batch_size": batch_size,
            "max_length": max_length,
        }
        (Path(folder) / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "bitquant.fresh", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ChildProcessError(f"{checkpoint} is saved, but a fresh process could not measure it: {last}")
        return json.loads(done.stdout)


def _answer(folder):
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    embeddings = load_file(folder / "embeddings.safetensors")
    directory = Path(request["checkpoint"])
    packed = load(directory)
    tokenizer = load_tokenizer(directory, read_config(directory))
    sizes = {"batch_size": request["batch_size"], "max_length": request["max_length"]}
    ours = embed(packed, TextBatches(tokenizer, request["held_out"], **sizes))
    source = load_source(request["source"])
    return {
        "fidelity": fidelity(embeddings["teacher"], ours),
        "identical": torch.equal(ours, embeddings["student"]),
        "milliseconds": text_times(
            {"before": source.model, "after": packed}, packed.config.vocab_size, longest=source.longest()
        ),
    }


if __name__ == "__main__":
    print(json.dumps(_answer(Path(sys.argv[1]))))
