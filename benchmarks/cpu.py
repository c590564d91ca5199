"""The 1-bit linear layer on this CPU, side by side with what a user would run instead.

    python -m benchmarks.cpu [--json] [--isa NAME] [--threads N] [--seconds S]

Every shape is first checked against the definition (``torch.equal``), then all layers are timed in turns in the same
process, so that a busy moment of the machine hits them alike; the median counts. Floats go in and come out: packing and
quantizing the activations is part of the time. int8 is dynamic per row, through ``torch._int_mm``.
"""

import json
import math
import statistics
import time

import click
import torch
from tabulate import tabulate
from torch.nn.functional import linear

from bitquant import ops, packing
from bitquant.ops import native

ROWS = (1, 16, 128, 512)
WEIGHTS = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))  # (K, N)
OURS, BASELINES = "1-bit", ("fp32", "bf16", "int8")


def binary_layer(weight, bias):
    """x -> binary_linear with the signs of ``weight`` and one scale a row."""
    n, k = weight.shape
    lanes = packing.to_lanes(packing.to_words(packing.pack_bits(weight >= 0), k))
    threshold, scale = torch.zeros(k), weight.abs().mean(1)
    return lambda x: ops.binary_linear(x, threshold, False, lanes, n, scale, bias)


def bf16_layer(weight, bias):
    weight, bias = weight.bfloat16(), bias.bfloat16()
    return lambda x: linear(x.bfloat16(), weight, bias).float()


def int8_layer(weight, bias):
    weight_scale = weight.abs().amax(1) / 127
    quantized = (weight / weight_scale.unsqueeze(1)).round().to(torch.int8).t()

    def layer(x):
        scale = x.abs().amax(1, keepdim=True) / 127
        product = torch._int_mm((x / scale).round_().to(torch.int8), quantized)
        return product.float().mul_(scale).mul_(weight_scale).add_(bias)

    return layer


def median_times(calls, seconds):
    """Median seconds of each call, taking turns for ``seconds`` and at least 7 rounds, after two that do not count."""
    times = {name: [] for name in calls}
    rounds, end = 0, math.inf
    while rounds < 9 or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        rounds += 1
        if rounds == 2:
            times = {name: [] for name in calls}
            end = time.perf_counter() + seconds
    return {name: statistics.median(t) for name, t in times.items()}


def measure(m, k, n, seconds):
    """One row of the table; raises if the kernel differs from the definition."""
    x, weight, bias = torch.randn(m, k), torch.randn(n, k) / math.sqrt(k), torch.randn(n)
    binary = binary_layer(weight, bias)
    out = binary(x)
    with ops.use_backend("naive"):
        if not torch.equal(out, binary(x)):
            raise click.ClickException(f"the kernel differs from its definition at {m} x {k} x {n}: no time is given")
    layers = {OURS: binary, "fp32": lambda x: linear(x, weight, bias)}
    layers |= {"bf16": bf16_layer(weight, bias), "int8": int8_layer(weight, bias)}
    times = median_times({name: lambda layer=layer: layer(x) for name, layer in layers.items()}, seconds)
    return {
        "M": m,
        "K": k,
        "N": n,
        "microseconds": {name: t * 1e6 for name, t in times.items()},
        "times_faster_than": {name: times[name] / times[OURS] for name in BASELINES},
        "gmac_per_s": m * k * n / times[OURS] / 1e9,
    }


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--isa", help="Instruction set of the 1-bit kernels.  [default: the best]")
@click.option("--threads", type=click.IntRange(1), help="Threads of every layer.  [default: torch's own]")
@click.option("--seconds", default=0.3, show_default=True, help="Time spent on each shape.")
def main(as_json, isa, threads, seconds):
    """Time the 1-bit linear layer against torch in fp32, bf16 and int8."""
    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    if isa:
        try:
            native.use_instruction_set(isa)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--isa") from None
    with torch.inference_mode():
        rows = [measure(m, k, n, seconds) for m in ROWS for k, n in WEIGHTS]
    means = {name: geometric_mean(r["times_faster_than"][name] for r in rows) for name in BASELINES}
    facts = {"backend": ops.backends()[0].reason, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        click.echo(json.dumps(facts | {"rows": rows, "geometric_mean_times_faster_than": means}, indent=2))
        return
    click.echo(
        f"{facts['backend']}; {facts['threads']} threads; torch {facts['torch']}; all shapes equal the definition\n"
    )
    table = [
        [r["M"], r["K"], r["N"], *r["microseconds"].values(), *r["times_faster_than"].values(), r["gmac_per_s"]]
        for r in rows
    ]
    headers = ["M", "K", "N", f"{OURS} us", *(f"{b} us" for b in BASELINES), *(f"x {b}" for b in BASELINES), "GMAC/s"]
    click.echo(tabulate(table, headers=headers, floatfmt=".1f"))
    click.echo("\ngeometric mean: " + ", ".join(f"{means[b]:.1f} times {b}" for b in BASELINES))


if __name__ == "__main__":
    main()
