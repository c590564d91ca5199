"""Peak memory of a forward pass in a process of its own (Linux).

Run as ``python -m benchmarks.peak_memory SHAPE DIRECTORY``, where DIRECTORY holds the packed checkpoint, or is "float".
"""

import ctypes
import subprocess
import sys
import tempfile

import torch

import bitquant
from benchmarks.transformer import FRAMES, encoder, packed


def peak_megabytes(shape, directory):
    """Megabytes that a new process needs beyond Python and torch, weights included, for a forward pass that is not
    its first."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", shape, str(directory)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def import_everything():
    """Go the whole way once, with a small model: code is no part of what a model needs."""
    small = packed(encoder("2x128"), torch.zeros(1, 8, 128))
    with tempfile.TemporaryDirectory() as folder:
        bitquant.save(small, folder)
        again = bitquant.load(folder, model=encoder("2x128"))
    with torch.inference_mode():
        again(torch.zeros(1, 8, 128))


def main(shape, directory):
    import_everything()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    if directory == "float":
        model = encoder(shape)
    else:
        with torch.device("meta"):
            model = encoder(shape)
        model = bitquant.load(directory, model=model)
    with torch.inference_mode():
        model(torch.randn(1, 8, model.dim))  # the first call traces a packed model
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # from here on
    with torch.inference_mode():
        model(torch.randn(1, FRAMES, model.dim))
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
