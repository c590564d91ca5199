"""A packed MiniLM through ONNX Runtime, measured by the same task as in torch.

    python -m benchmarks.accuracy.onnx CHECKPOINT

CHECKPOINT is what ``bitquant demo`` or ``python -m benchmarks.accuracy.run minilm`` wrote.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from tabulate import tabulate
from torch import Tensor, nn

import bitquant
from bitquant.measure import megabytes
from bitquant.onnx.runtime import Session
from bitquant.sources import weight_files


class Runtime(nn.Module):
    """An exported encoder called as the torch one: ``input_ids``, ``attention_mask`` int64 (B, T) -> hidden states."""

    def __init__(self, file: Path):
        super().__init__()
        self.session = Session(file.read_bytes(), torch.get_num_threads())

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.session(inputs)["last_hidden_state"]


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(checkpoint: Path) -> None:
    """Export CHECKPOINT and measure both."""
    from benchmarks.accuracy import minilm

    source, packed = minilm.source(), bitquant.load(checkpoint)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "minilm.onnx"
        print(bitquant.export_onnx(packed, source.example_inputs(), file))
        sizes = megabytes([file]), megabytes(weight_files(checkpoint))
        found = minilm.score(source, {"float": source.model, "packed": packed, "ONNX Runtime": Runtime(file)})
    rows = [(measure, *(f"{rate:.1%}" for rate in rates.values())) for measure, rates in found.items()]
    click.echo(tabulate(rows, headers=("", *next(iter(found.values())))))
    click.echo(f"{sizes[0]:.2f} MB of ONNX, {sizes[1]:.2f} MB of safetensors")


if __name__ == "__main__":
    main()
