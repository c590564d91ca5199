"""What rewriting costs: HuBERT-base (12 layers of 768, random weights) on one second of audio.

    python -m benchmarks.capture [--json] [--threads N] [--rounds R]

The float model and a copy whose attention goes through the rewriting with float children (the same arithmetic) are
compared for equal outputs first, then timed in turns; the shortest round counts. A third copy times ``quantize_``.
"""

import copy
import json
import time

import click
import torch
from tabulate import tabulate
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import bitquant
from bitquant.capture import discover, wrap_owners_


class FloatAttention(nn.Module):
    """The attention child of a rewritten module, computing just what was there before."""

    def forward(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        return scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)


def measure(rounds):
    """Milliseconds of both forwards, seconds of ``quantize_``, and the largest difference of the outputs."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    model = HubertModel(HubertConfig(apply_spec_augment=False, layerdrop=0.0)).eval()
    inputs = {"input_values": torch.randn(1, 16000)}
    rewritten = copy.deepcopy(model)
    discovery = discover(rewritten, inputs)
    wrap_owners_(rewritten, discovery, lambda site: FloatAttention() if site.kind == "attention" else None, inputs)
    quantized, start = copy.deepcopy(model), time.perf_counter()
    bitquant.quantize_(quantized, "bit-plus", inputs)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        difference = (model(**inputs)[0] - rewritten(**inputs)[0]).abs().max().item()
        best = {"float": float("inf"), "rewritten": float("inf")}
        for _ in range(rounds):
            for name, candidate in (("float", model), ("rewritten", rewritten)):
                start = time.perf_counter()
                candidate(**inputs)
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return {"difference": difference, "milliseconds": best, "quantize_seconds": seconds}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch.")
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
def main(as_json, threads, rounds):
    """Measure what rewriting HuBERT-base costs."""
    if threads:
        torch.set_num_threads(threads)
    result = measure(rounds)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    before, after = result["milliseconds"]["float"], result["milliseconds"]["rewritten"]
    rows = [
        ("float forward, ms", f"{before:.1f}"),
        ("rewritten forward, ms", f"{after:.1f}"),
        ("overhead", f"{100 * (after / before - 1):+.1f} %"),
        ("largest difference", f"{result['difference']:.1e}"),
        ("quantize_, s", f"{result['quantize_seconds']:.1f}"),
    ]
    click.echo(tabulate(rows, disable_numparse=True))


if __name__ == "__main__":
    main()
