"""What a training step of a fake-quantized encoder costs, beside the float encoder's own.

    python -m benchmarks.qat [--json] [--threads N] [--shape NAME] [--frames T] [--batch B] [--seconds S]

Each step is forward, squared error, backward, clipping and AdamW in one pass, on the same random frames; products of
levels have their gradients in bfloat16 where that is fast, as in ``bitquant.distill``, all others in fp32. All forms
take turns in random order in one process; medians count. ``distillation`` has the float teacher's forward in it, too.
"""

import copy
import json

import click
import torch
from tabulate import tabulate
from torch.nn.functional import mse_loss

import bitquant
from benchmarks.timing import median_times
from benchmarks.transformer import FRAMES, SHAPES, encoder
from bitquant.nn.training import fast_gradients

FLOAT, DISTILLATION = "float", "distillation, w1a1"
FORMS = {"w1a1": ("bit-plus", 1), "w1a8": ("bit-plus", 8), "w1a1, bit-ref": ("bit-ref", 1)}


def step(model, x, target):
    """() -> None: one training step. x, and what target() gives: (B, T, D)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with fast_gradients():
            mse_loss(model(x), target()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


def measure(shape, batch, frames, seconds):
    """Milliseconds of a step, by form."""
    torch.manual_seed(0)
    teacher = encoder(shape)
    x, target = torch.randn(batch, frames, teacher.dim), torch.randn(batch, frames, teacher.dim)
    calls = {FLOAT: step(copy.deepcopy(teacher), x, lambda: target)}
    for name, (preset, bits) in FORMS.items():
        student = copy.deepcopy(teacher)
        bitquant.quantize_(student, bitquant.QuantConfig.preset(preset, activation_bits=bits), x[:1])
        calls[name] = step(student, x, lambda: target)
        if name == "w1a1":
            calls[DISTILLATION] = step(copy.deepcopy(student), x, torch.no_grad()(lambda: teacher(x)))
    return {name: 1e3 * t for name, t in median_times(calls, seconds, rounds=3).items()}


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="12x768", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--frames", type=click.IntRange(min=1), default=FRAMES, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Of all forms.")
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True)
def main(shape, batch, frames, seconds, threads, as_json):
    """Time training steps of the float encoder and its fake-quantized forms."""
    if threads:
        torch.set_num_threads(threads)
    times = measure(shape, batch, frames, seconds)
    if as_json:
        run = {"shape": shape, "batch": batch, "frames": frames, "threads": torch.get_num_threads()}
        click.echo(json.dumps({**run, "milliseconds": times}, indent=2))
        return
    click.echo(f"{shape}, {batch} x {frames} frames, {torch.get_num_threads()} threads")
    rows = [(name, f"{t:.0f}", f"{t / times[FLOAT]:.2f}x") for name, t in times.items()]
    click.echo(tabulate(rows, headers=("step", "ms", "of float")))


if __name__ == "__main__":
    main()
