"""Packed layers on this CPU, side by side with what a user would run instead.

    python -m benchmarks.cpu [--json] [--isa NAME] [--threads N] [--seconds S] [--only TABLE]

Every shape is first checked against the definition (``torch.equal``), then all layers are timed in turns in the same
process, so that a busy moment of the machine hits them alike; the median of second calls counts, as layers of one kind
follow one another in a model. Floats go in and come out: packing and quantizing the activations is part of the time.
int8 is dynamic per row, through ``torch._int_mm``.
"""

import json
import math

import click
import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import conv1d, conv2d, linear, relu, scaled_dot_product_attention

import bitquant
from benchmarks.timing import bf16_layer, geometric_mean, int8_layer, median_times
from bitquant import ops, packing
from bitquant.ops import library, rules
from bitquant.packed import PackedLinear
from bitquant.packed.deferred import LEAST

ROWS = (1, 50, 500, 1500)
WEIGHTS = ((144, 576), (256, 256), (256, 1024), (512, 2048), (768, 768), (768, 3072), (3072, 768))  # (K, N)
PAIRS = ((256, 1024), (768, 3072))  # of feed-forward modules
LENGTHS, HEADS = (50, 500, 1500), ((4, 36), (12, 64), (4, 128))  # (heads, size of a head)
CONVOLUTIONS = (  # what it is, input, channels out, kernel, stride, padding, groups
    ("HuBERT positions", (1, 768, 499), 768, (128,), 1, 64, 16),
    ("HuBERT extractor", (1, 512, 3199), 512, (3,), 2, 0, 1),
    ("Whisper stem", (1, 384, 3000), 384, (3,), 2, 1, 1),
    ("Conformer pointwise", (1, 144, 500), 288, (1,), 1, 0, 1),
    ("Conformer depthwise", (1, 144, 500), 144, (31,), 1, 15, 144),
    ("Conformer depthwise", (4, 512, 250), 512, (31,), 1, 15, 512),
    ("ResNet 3x3", (1, 64, 56, 56), 64, (3, 3), 1, 1, 1),
    ("ResNet 3x3", (1, 256, 14, 14), 256, (3, 3), 1, 1, 1),
    ("ConvNeXt depthwise", (1, 96, 56, 56), 96, (7, 7), 1, 3, 96),
    ("ViT patches", (1, 3, 224, 224), 384, (16, 16), 16, 0, 1),
)
OURS, WIDER, BASELINES = "1-bit", ("2-bit", "4-bit"), ("fp32", "bf16", "int8")


def lanes_of(weight):
    """The signs of ``weight`` (N, K) as the kernels read them."""
    return packing.to_lanes(packing.to_words(packing.pack_bits(weight >= 0), weight.shape[1]))


def packed_layer(weight, bias, bits):
    """A packed linear layer of ``bits``-bit inputs with the signs of ``weight`` (N, K) and one scale a row."""
    n, k = weight.shape
    layer = PackedLinear(k, n, bits=bits, signed=True, bias=True, scales=n)
    layer.pack(weight >= 0)
    layer.scale.copy_(weight.abs().mean(1))
    layer.bias.copy_(bias)
    if bits > 1:
        layer.step.fill_(2.0 ** (2 - bits))
    return layer


def binary_convolution(weight, bias, bits, stride, padding, groups):
    """x -> convolution of ``bits``-bit inputs with the signs of ``weight`` (C_out, C_in / groups, *kernel)."""
    n, kernel = weight.shape[0], list(weight.shape[2:])
    lanes, scale = lanes_of(weight.movedim(1, -1).flatten(1)), weight.flatten(1).abs().mean(1)
    offset, step = torch.zeros(weight.shape[1] * groups), torch.tensor([2.0 ** (2 - bits)])
    space = len(kernel)
    geometry = kernel, [stride] * space, [padding] * 2 * space, [1] * space, groups
    return lambda x: ops.convolution(x, offset, step, bits, True, lanes, n, *geometry, scale, bias)


def measure(what, x, ours, others, macs, seconds):
    """Times of all layers on ``x``; raises if one of ``ours`` differs from the definition."""
    for name, layer in ours.items():
        out = layer(x)
        with ops.use_backend("naive"):
            if not torch.equal(out, layer(x)):
                raise click.ClickException(f"the {name} kernel differs from its definition at {what}: no time is given")
    layers = ours | others
    times = median_times({name: lambda layer=layer: layer(x) for name, layer in layers.items()}, seconds, settle=True)
    return {
        "microseconds": {name: t * 1e6 for name, t in times.items()},
        "times_faster_than": {name: times[name] / times[OURS] for name in others},
        "gmac_per_s": macs / times[OURS] / 1e9,
    }


def measure_linear(m, k, n, seconds):
    """One row of the first table."""
    x, weight, bias = torch.randn(m, k), torch.randn(n, k) / math.sqrt(k), torch.randn(n)
    ours = {name: packed_layer(weight, bias, int(name[0])) for name in (OURS, *WIDER)}
    others = {"fp32": lambda x: linear(x, weight, bias), "bf16": bf16_layer(weight, bias)}
    others |= {"int8": int8_layer(weight, bias)}
    return {"M": m, "K": k, "N": n} | measure(f"{m} x {k} x {n}", x, ours, others, m * k * n, seconds)


def measure_pair(m, k, n, seconds):
    """One row of the second table: K to N, a ReLU, N to K; bits between them where floats would leave the caches."""
    x = torch.randn(m, k)
    (first, first_bias), (second, second_bias) = (
        (torch.randn(rows, columns) / math.sqrt(columns), torch.randn(rows)) for rows, columns in ((n, k), (k, n))
    )
    one, two, deferring = (
        packed_layer(weight, bias, 1)
        for weight, bias in ((first, first_bias), (second, second_bias), (first, first_bias))
    )
    deferring.defers_from = LEAST  # as bitquant.optimize_ leaves it
    ours = {OURS: lambda x: two(relu(deferring(x))), "with floats": lambda x: two(relu(one(x)))}
    others = {"fp32": lambda x: linear(relu(linear(x, first, first_bias)), second, second_bias)}
    return {"M": m, "K": k, "N": n} | measure(f"{m} x {k} x {n} x {k}", x, ours, others, 2 * m * k * n, seconds)


def measure_attention(length, heads, d, seconds):
    """One row of the third table: queries, keys and values as a linear layer leaves them, (B, T, H * d)."""
    q, k, v = (torch.randn(1, length, heads * d).unflatten(-1, (heads, d)).transpose(1, 2) for _ in range(3))
    margin, scale = torch.tensor([round(math.log(4) * math.sqrt(d))]), torch.ones(1)
    table, ratio = rules.softmax_table(torch.tensor(d**-0.5), d), torch.tensor([round(2**24 / length)])
    ours = {
        OURS: lambda q: ops.binary_attention_rowmax(q, k, v, None, margin, scale),
        "1-bit table": lambda q: ops.binary_attention_table(q, k, v, None, table, ratio, scale),
    }
    others = {"fp32": lambda q: scaled_dot_product_attention(q, k, v)}
    macs = 2 * heads * length * length * d
    return {"T": length, "heads": heads, "d": d} | measure(
        f"{heads} heads, T {length}, d {d}", q, ours, others, macs, seconds
    )


def limit(seconds):
    """GMAC/s of the linear kernel's instructions on registers alone, on all threads."""
    threads, rounds = torch.get_num_threads(), 10_000
    done = library.popcount_limit(rounds, threads)
    time = median_times({"limit": lambda: library.popcount_limit(rounds, threads)}, seconds)["limit"]
    return done / time / 1e9


def optimized_convolution(weight, bias, stride, padding, groups):
    """The float layer after ``optimize_``, which has faster forms of grouped and depthwise 1-d ones."""
    layer = nn.Conv1d if weight.ndim == 3 else nn.Conv2d
    out, inner, *kernel = weight.shape
    model = nn.Sequential(layer(inner * groups, out, kernel, stride, padding, groups=groups))
    model.load_state_dict({"0.weight": weight, "0.bias": bias})
    bitquant.optimize_(model.eval().requires_grad_(False))
    return model


def measure_convolution(what, shape, channels, kernel, stride, padding, groups, seconds):
    """One row of the fourth table."""
    columns = shape[1] // groups * math.prod(kernel)
    x, bias = torch.randn(shape), torch.randn(channels)
    weight = torch.randn(channels, shape[1] // groups, *kernel) / math.sqrt(columns)
    geometry = stride, padding, groups
    ours = {name: binary_convolution(weight, bias, int(name[0]), *geometry) for name in (OURS, *WIDER)}
    convolve = conv1d if len(kernel) == 1 else conv2d
    others = {"fp32": lambda x: convolve(x, weight, bias, stride, padding, 1, groups)}
    others["fp32, optimize_"] = optimized_convolution(weight, bias, stride, padding, groups)
    macs = others["fp32"](x).numel() * columns
    text = [" x ".join(map(str, size)) for size in (shape, kernel)]
    facts = {"layer": what, "input": text[0], "out": channels, "kernel": text[1], "stride": stride, "groups": groups}
    return facts | measure(what, x, ours, others, macs, seconds)


def means(rows):
    return {name: geometric_mean(r["times_faster_than"][name] for r in rows) for name in rows[0]["times_faster_than"]}


def show(rows):
    """One table, and the mean ratios below it."""
    numbers = ("microseconds", "times_faster_than", "gmac_per_s")
    facts = [name for name in rows[0] if name not in numbers]
    table = [
        [*(r[f] for f in facts), *r["microseconds"].values(), *r["times_faster_than"].values(), r["gmac_per_s"]]
        for r in rows
    ]
    times = [f"{name} us" for name in rows[0]["microseconds"]]
    headers = [*facts, *times, *(f"x {name}" for name in rows[0]["times_faster_than"]), "GMAC/s"]
    click.echo(tabulate(table, headers=headers, floatfmt=".1f"))
    ratios = ", ".join(f"{mean:.1f} times {name}" for name, mean in means(rows).items())
    click.echo(f"\ngeometric mean of {OURS}: {ratios}\n")


def show_linear(rows, most):
    show(rows)
    best = max(row["gmac_per_s"] for row in rows)
    ratios = means([row for row in rows if row["M"] > 1])
    click.echo(f"Without M = 1: {', '.join(f'{mean:.1f} times {name}' for name, mean in ratios.items())}")
    click.echo(f"The same instructions on registers alone: {most:.0f} GMAC/s; at most {best / most:.0%} of it\n")


TABLES = {
    "linear": lambda s: [measure_linear(m, k, n, s) for m in ROWS for k, n in WEIGHTS],
    "pair": lambda s: [measure_pair(m, k, n, s) for m in ROWS for k, n in PAIRS],
    "attention": lambda s: [measure_attention(t, h, d, s) for t in LENGTHS for h, d in HEADS],
    "convolution": lambda s: [measure_convolution(*row, s) for row in CONVOLUTIONS],
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--isa", help="Instruction set of the packed kernels.  [default: the best]")
@click.option("--threads", type=click.IntRange(1), help="Threads of every layer.  [default: torch's own]")
@click.option("--seconds", default=0.3, show_default=True, help="Time spent on each shape.")
@click.option("--only", "names", type=click.Choice(list(TABLES)), multiple=True, help="This table; may be repeated.")
def main(as_json, isa, threads, seconds, names):
    """Time packed linear layers, feed-forward pairs, attention and convolutions against torch."""
    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    if isa:
        try:
            library.use_instruction_set(isa)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--isa") from None
    with torch.inference_mode():
        most = limit(seconds)
        tables = {name: TABLES[name](seconds) for name in names or TABLES}
    facts = {"backend": ops.backends()[0].reason, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        facts["limit_gmac_per_s"] = most
        ratios = {name: means(rows) for name, rows in tables.items()}
        click.echo(json.dumps(facts | tables | {"geometric_mean_times_faster_than": ratios}, indent=2))
        return
    click.echo(
        f"{facts['backend']}; {facts['threads']} threads; torch {facts['torch']}; all shapes equal the definition\n"
    )
    for name, rows in tables.items():
        show_linear(rows, most) if name == "linear" else show(rows)


if __name__ == "__main__":
    main()
