"""A packed encoder in ONNX Runtime beside the same encoder in float and in ONNX Runtime's own dynamic int8.

    python -m benchmarks.onnx [--preset bit-plus] [--seconds 10] [--layers 12] [--threads 1,2] [--save DIR]

Every layer is replayed first and must give equal numbers; then the files take turns. Weights are random: time does not
depend on them. Each packed file is also loaded folded, with its signs stored as int8.
"""

from __future__ import annotations

import copy
import statistics
from pathlib import Path

import click
import onnxruntime
import torch
from tabulate import tabulate
from torch import Tensor, nn

import bitquant
from bitquant.onnx.check import check
from bitquant.onnx.export import build, trace
from bitquant.onnx.report import dynamic_int8
from bitquant.onnx.runtime import Session, milliseconds
from recipes.hubert.encoders.transformer import Transformer

FRAMES = 50  # a second


class Encoder(nn.Module):
    """HuBERT-base's layers: frames (B, T, 768) -> (B, T, 768)."""

    def __init__(self, layers: int):
        super().__init__()
        self.encoder = Transformer(layers=layers, dim=768, heads=12, ffn=3072)

    def forward(self, frames: Tensor) -> Tensor:
        return self.encoder(frames)[-1]


def load_ms(content: bytes, rounds: int = 5) -> float:
    """Median milliseconds to make a session of a file's bytes, with one thread."""
    return statistics.median(Session(content).load_ms for _ in range(rounds))


@click.command()
@click.option("--preset", "presets", multiple=True, default=("bit-plus", "bit-ref"), show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True)
@click.option("--layers", type=int, default=12, show_default=True)
@click.option("--threads", default="1,2", show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Keep the files in this directory.")
def main(presets, seconds, layers, threads, save):
    """Time packed encoders in ONNX Runtime."""
    torch.manual_seed(0)
    model = Encoder(layers).eval()
    inputs = {"frames": torch.randn(1, int(FRAMES * seconds), 768)}
    float_file = trace(copy.deepcopy(model), inputs, dynamic=True)
    files = {"float32": float_file.SerializeToString(), "dynamic int8": dynamic_int8(float_file)}
    folded = {}
    for preset in presets:
        packed = copy.deepcopy(model)
        bitquant.quantize_(packed, preset, {"frames": inputs["frames"][:, :50]})
        bitquant.convert_(packed)
        nodes, proto = build(packed, inputs)
        found = check(nodes, proto, inputs)
        print(
            f"{preset}: {found.layers} layers replayed, {found.mismatches} of {found.values} values differ", flush=True
        )
        if found.mismatches:
            raise SystemExit(f"{preset} is not exact in this runtime, worst in {found.worst}: not timed")
        files[preset] = proto.SerializeToString()
        folded[f"{preset}, folded"] = build(packed, inputs, fold=True)[1].SerializeToString()
    if save:
        save.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (save / f"{name.replace(' ', '-')}.onnx").write_bytes(content)
    print(f"ONNX Runtime {onnxruntime.__version__}, {seconds:g} s of audio, {layers} layers of 768")
    rows = [(name, len(content) / 1e6, load_ms(content)) for name, content in (files | folded).items()]
    print("\n" + tabulate(rows, ("", "MB", "load, ms"), floatfmt=("", ".2f", ".0f")), flush=True)
    for count in map(int, threads.split(",")):
        sessions = {name: Session(content, count) for name, content in files.items()}
        times = milliseconds(sessions, inputs, seconds=3)
        rows = [(name, ms, times["float32"] / ms) for name, ms in times.items()]
        head = (f"{count} thread(s)", "run, ms", "times float32")
        print("\n" + tabulate(rows, head, floatfmt=("", ".1f", ".2f")), flush=True)


if __name__ == "__main__":
    main()
