"""The Triton kernels on this GPU, side by side with what a user would run instead, in CUDA graphs.

    python -m benchmarks.gpu [--out FILE] [--tune FILE] [--quick]

Every kernel is first checked against its definition (``torch.equal``). Ratios stand beside the goals of the design.
Without ``--out`` the result goes to ``benchmarks/results/GPU-NAME.json``, with the versions it was measured with.
"""

import json
import platform
import re
import time
from pathlib import Path

import click
import torch
from tabulate import tabulate
from torch.nn.functional import linear, scaled_dot_product_attention

from bitquant import QuantConfig, atomic, ops, packing, quantize_
from bitquant.ops import naive
from bitquant.ops.triton import device as gpu

SHAPES = ((768, 768), (768, 2304), (768, 3072), (3072, 768))  # (K, N)
ROWS = (128, 512, 2048, 8192)
ATTENTION = ((8, 12, 1024, 64), (5, 12, 1500, 64), (16, 12, 512, 64))  # (B, H, T, d)
GOALS = {  # times as fast as cuBLAS by rows, activations already packed: (fp16 out, the same at K = 3072, bits out)
    "H100": {128: (1.3, 1.3, 1.3), 512: (1.5, 1.5, 1.7), 2048: (2.0, 3.0, 2.7), 8192: (2.2, 4.0, 3.5)},
    "A100": {128: (1.5, 1.5, 1.7), 512: (2.0, 2.0, 2.5), 2048: (3.0, 5.0, 4.0), 8192: (3.2, 6.0, 5.0)},
}
ATTENTION_GOAL, LAYER_GOAL = 1.5, 2.5  # over SDPA; a whole layer of 8192 tokens over fp16
EPSILON = 1e-5


def graphed_microseconds(call, repeats=20):
    """Median time of one call among ``repeats`` in a CUDA graph, over nine replays."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            call()
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / repeats)
    return sorted(times)[4]


def must_equal(what, out, expected):
    if not torch.equal(out, expected):
        raise click.ClickException(f"{what} differs from its definition: no time is given")


def lanes_of(weight):
    return packing.to_lanes(packing.to_words(packing.pack_bits(weight >= 0), weight.shape[1]))


def goal(device, rows, column):
    known = next((goals for name, goals in GOALS.items() if name in device), {})
    return known.get(rows, (None,) * 3)[column]


def measure_linear(m, k, n):
    """Every kernel that runs here, with fp16 and bits out, against cuBLAS and int8."""
    from bitquant.ops.triton import fused
    from bitquant.ops.triton.limits import integer_limits

    x, weight = torch.randn(m, k, device="cuda").half(), torch.randn(n, k, device="cuda")
    scale, bias, zero = weight.abs().mean(1), torch.randn(n, device="cuda"), torch.zeros(1, device="cuda")
    packed, bits = fused.Weight(lanes_of(weight), n, k), fused.pack(x, zero, False)
    expected = naive.binary_linear(x, zero, False, packed.lanes, n, scale, bias)
    limits = integer_limits(scale, bias, zero, k, dtype=torch.float16)
    words = naive.threshold_pack(expected, zero, False)[0]
    on, times = gpu.device(x.device), {}
    for kernel in gpu.KERNELS:
        if not gpu.kernel_reason(kernel, on)[0]:
            continue
        must_equal(f"{kernel} {m} x {k} x {n}", fused.linear(bits, packed, scale, bias, dtype=torch.float16,
                                                             kernel=kernel), expected)  # fmt: skip
        must_equal(
            f"{kernel} to bits", fused.linear_bits(bits, packed, limits, kernel=kernel).words[:, : n // 32], words
        )
        times[f"{kernel} fp16"] = graphed_microseconds(
            lambda kernel=kernel: fused.linear(bits, packed, scale, bias, dtype=torch.float16, kernel=kernel)
        )
        times[f"{kernel} bits"] = graphed_microseconds(
            lambda kernel=kernel: fused.linear_bits(bits, packed, limits, kernel=kernel)
        )
    times["pack x"] = graphed_microseconds(lambda: fused.pack(x, zero, False))
    times["op"] = graphed_microseconds(lambda: ops.binary_linear(x, zero, False, packed.lanes, n, scale, bias))
    half, half_bias = weight.half(), bias.half()
    times["cuBLAS fp16"] = graphed_microseconds(lambda: linear(x, half, half_bias))
    brain = (x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    times["cuBLAS bf16"] = graphed_microseconds(lambda: linear(*brain))
    left, right = x.to(torch.int8), weight.to(torch.int8).t()
    times["_int_mm"] = graphed_microseconds(lambda: torch._int_mm(left, right))
    chosen = gpu.choose(on, m)[0]
    best = min(times["cuBLAS fp16"], times["cuBLAS bf16"])
    return {
        "M": m, "K": k, "N": n, "kernel": chosen, "microseconds": times,
        "fp16 out": best / times[f"{chosen} fp16"], "goal fp16": goal(on.name, m, int(k == 3072)),
        "bits out": best / times[f"{chosen} bits"], "goal bits": goal(on.name, m, 2),
    }  # fmt: skip


def measure_attention(b, h, t, d):
    """Row-max and table attention on fp16 tensors and on bits, against SDPA."""
    from bitquant.ops.triton import fused

    q, k, v = (torch.randn(b, h, t, d, device="cuda").half() for _ in range(3))
    scale, margin = torch.ones(1, device="cuda"), torch.tensor([16], device="cuda")
    table = torch.round(4096 * torch.exp(-0.2 * torch.arange(d + 1, device="cuda"))).long()
    ratio = torch.tensor([round(2**24 / t)], device="cuda")
    must_equal("row-max attention", ops.binary_attention_rowmax(q, k, v, None, margin, scale),
               naive.binary_attention_rowmax(q, k, v, None, margin, scale))  # fmt: skip
    must_equal("table attention", ops.binary_attention_table(q, k, v, None, table, ratio, scale),
               naive.binary_attention_table(q, k, v, None, table, ratio, scale))  # fmt: skip
    zero, words = torch.zeros(1, device="cuda"), []
    for x in (q, k, v):
        packed = fused.pack(x.reshape(-1, d), zero, False).words
        stride = packed.shape[1]
        words.append(fused.Words(packed, (h * t * stride, t * stride, stride)))
    shape = b, h, t, t, d, d
    times = {
        "row-max": graphed_microseconds(lambda: fused.attention(*words, shape, None, (margin,), scale, q.dtype)),
        "table": graphed_microseconds(lambda: fused.attention(*words, shape, None, (table, ratio), scale, q.dtype)),
        "op row-max": graphed_microseconds(lambda: ops.binary_attention_rowmax(q, k, v, None, margin, scale)),
        "SDPA": graphed_microseconds(lambda: scaled_dot_product_attention(q, k, v)),
    }
    return {
        "B": b, "H": h, "T": t, "d": d, "microseconds": times,
        "row-max": times["SDPA"] / times["row-max"], "table": times["SDPA"] / times["table"], "goal": ATTENTION_GOAL,
    }  # fmt: skip


class BinaryEncoder:
    """Post-norm layers that hand on bits, 768 wide: QKV to bits, attention to bits, two norms that give bits."""

    def __init__(self, layers, batch, length, width=768, heads=12):
        from bitquant.ops.triton import fused
        from bitquant.ops.triton.limits import integer_limits

        self.layers, self.shape = layers, (batch, heads, length, length, width // heads, width // heads)
        zero = torch.zeros(1, device="cuda")
        self.zero, self.one = torch.zeros(width, device="cuda"), torch.ones(width, device="cuda")
        self.scale, self.margin = torch.ones(1, device="cuda"), torch.tensor([16], device="cuda")
        sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        self.weights, self.scales = [], []
        for k, n in sizes:
            weight = torch.randn(n, k, device="cuda")
            self.weights.append(fused.Weight(lanes_of(weight), n, k))
            self.scales.append(weight.abs().mean(1) / k**0.5)
        self.qkv_limits = integer_limits(self.scales[0], None, zero, width, dtype=torch.float16)
        self.unit_limits = integer_limits(
            self.scales[2], None, zero + 0.4, width, strict=True, relu=True, dtype=torch.float16
        )

    def __call__(self, x, bits):
        from bitquant.ops.triton import fused

        b, heads, t, _, d, _ = self.shape
        for _ in range(self.layers):
            qkv = fused.linear_bits(bits, self.weights[0], self.qkv_limits)
            row = qkv.words.shape[1]
            parts = [fused.Words(qkv.words, (t * row, d // 32, row), i * heads * d // 32) for i in range(3)]
            mixed = fused.attention(*parts, self.shape, None, (self.margin,), self.scale, x.dtype, self.zero)
            out = fused.linear(mixed, self.weights[1], self.scales[1], dtype=x.dtype)
            x, bits = fused.layer_norm(x, out, self.one, self.zero, EPSILON, self.zero)
            hidden = fused.linear_bits(bits, self.weights[2], self.unit_limits)
            out = fused.linear(hidden, self.weights[3], self.scales[3], unit=True, dtype=x.dtype)
            x, bits = fused.layer_norm(x, out, self.one, self.zero, EPSILON, self.zero)
        return x


def measure_encoder(layers, batch, length):
    """Whole layers against ``nn.TransformerEncoderLayer`` in fp16 and bf16."""
    from bitquant.ops.triton import fused

    x = torch.randn(batch * length, 768, device="cuda").half()
    ours, bits = BinaryEncoder(layers, batch, length), fused.pack(x, torch.zeros(1, device="cuda"), False)
    times = {"1-bit": graphed_microseconds(lambda: ours(x, bits), 1)}
    for dtype in (torch.float16, torch.bfloat16):
        layer = torch.nn.TransformerEncoderLayer(
            768, 12, 3072, 0.0, "gelu", batch_first=True, device="cuda", dtype=dtype
        )
        theirs = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
        source = x.view(batch, length, 768).to(dtype)
        times[str(dtype).removeprefix("torch.")] = graphed_microseconds(lambda m=theirs, s=source: m(s), 1)
    best = min(times["float16"], times["bfloat16"])
    return {"layers": layers, "tokens": batch * length, "microseconds": times, "times faster": best / times["1-bit"],
            "goal": LAYER_GOAL}  # fmt: skip


def measure_training(rows):
    """One step forward and backward of a 768 -> 3072 layer: quantized with our kernels, with plain torch, and float."""

    def step(layer, x):
        layer(x).square().mean().backward()

    x, times = torch.randn(rows, 768, device="cuda"), {}
    for name in ("float32", "triton", "naive"):
        model = torch.nn.Sequential(torch.nn.Linear(768, 3072)).cuda()
        if name != "float32":
            every = QuantConfig.preset("bit-plus", modules_to_not_convert=[])
            quantize_(model, every, x)
        samples = []
        with ops.use_backend("naive" if name == "naive" else "triton"):
            for _ in range(30):
                torch.cuda.synchronize()
                start = time.perf_counter()
                step(model, x)
                torch.cuda.synchronize()
                samples.append(1e6 * (time.perf_counter() - start))
        times[name] = sorted(samples[5:])[12]
    return {"rows": rows, "microseconds": times, "of a float step": times["triton"] / times["float32"]}


def tune(file):
    """Try every candidate of the products on this GPU and write the fastest ones as a configuration."""
    from bitquant.ops.triton import config, fused

    on, kernels = gpu.device(torch.device("cuda", torch.cuda.current_device())), {}
    for kernel in gpu.KERNELS:
        if not gpu.kernel_reason(kernel, on)[0]:
            continue
        kernels[kernel] = []
        for m in ROWS:
            total = [0.0] * len(config.CANDIDATES[kernel])
            for k, n in SHAPES:
                x, weight = torch.randn(m, k, device="cuda").half(), torch.randn(n, k, device="cuda")
                bits = fused.pack(x, torch.zeros(1, device="cuda"), False)
                packed, scale = fused.Weight(lanes_of(weight), n, k), weight.abs().mean(1)
                for i, candidate in enumerate(config.CANDIDATES[kernel]):
                    fused.settings = lambda *_, launch=candidate: launch
                    call = lambda: fused.linear(bits, packed, scale, dtype=torch.float16, kernel=kernel)  # noqa: B023, E731
                    total[i] += graphed_microseconds(call)
            best = config.CANDIDATES[kernel][total.index(min(total))]
            kernels[kernel].append({"rows": m, **best})
            click.echo(f"{kernel}, up to {m} rows: {best}")
        fused.settings = config.settings
    write(Path(file), {"device": on.name, "origin": f"measured, torch {torch.__version__}", "kernels": kernels})


def write(path, content):
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    atomic.write(new, (json.dumps(content, indent=2) + "\n").encode())
    new.replace(path)


def show(title, rows):
    times = sorted({name for row in rows for name in row["microseconds"]})
    facts = [name for name in rows[0] if name != "microseconds"]
    table = [[*(row[f] for f in facts), *(row["microseconds"].get(t) for t in times)] for row in rows]
    click.echo(f"\n{title}\n" + tabulate(table, headers=[*facts, *(f"{t} us" for t in times)], floatfmt=".2f"))


@click.command()
@click.option("--out", type=click.Path(dir_okay=False), help="Where the result goes.")
@click.option("--tune", "tuned", type=click.Path(dir_okay=False), help="First find the best tiles and write them here.")
@click.option("--quick", is_flag=True, help="One shape of each kind.")
def main(out, tuned, quick):
    """Time the GPU kernels against cuBLAS, int8, SDPA and float training. Needs a GPU."""
    reason = "Triton interprets kernels" if gpu.interpreted() else gpu.unavailable_reason()
    if reason:
        raise click.ClickException(
            f"nothing was measured: {reason}. This benchmark needs a GPU; the kernels' results and their machine code"
            " are tested without one (pytest tests/ops/triton)."
        )
    torch.manual_seed(0)
    if tuned:
        tune(tuned)
    rows, shapes, attention = (ROWS[-1:], SHAPES[:1], ATTENTION[:1]) if quick else (ROWS, SHAPES, ATTENTION)
    name = torch.cuda.get_device_name()
    result = {
        "device": name,
        "versions": {"torch": torch.__version__, "triton": gpu.triton_version(), "python": platform.python_version(),
                     "cuda": torch.version.cuda or torch.version.hip},
    }  # fmt: skip
    with torch.inference_mode():
        result["linear"] = [measure_linear(m, k, n) for m in rows for k, n in shapes]
        result["attention"] = [measure_attention(*size) for size in attention]
        result["encoder"] = [measure_encoder(layers, 8, 1024) for layers in ((1,) if quick else (1, 12))]
    result["training step"] = [measure_training(m) for m in rows[-2:]]
    click.echo(f"{name}; {result['versions']}; all shapes equal their definitions")
    for title in ("linear", "attention", "encoder", "training step"):
        show(title, result[title])
    write(Path(out or f"benchmarks/results/{re.sub('[^a-z0-9]+', '-', name.lower())}.json"), result)


if __name__ == "__main__":
    main()
