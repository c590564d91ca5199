"""Waveform to features: the recipe's models on 10 s of audio, float and packed, and what the speed-up is made of.

    python -m benchmarks.waveform [--json] [--threads N] [--seconds S]

The float Transformer (12 layers of 768) is compared with BQ-Sparseformer-DN-S (16 of 256, 1 bit), both with the
FastConv extractor. Factors: architecture (float to float), binarization (the same architecture, packed), and extractor
work (``bitquant.optimize_``). Weights are random: they change no time. Packed models are first compared with the
definition of their ops, bit for bit; what optimize_ changes is printed as flipped bits of all binarizers, cosine of the
features, and how often an untrained prediction head chooses the same of 100 classes. In an untrained 1-bit model a
flipped bit flips others in every layer behind it, so these are lower bounds of what a trained one keeps.
"""

import copy
import json

import click
import torch
import torch.nn.functional as F
from tabulate import tabulate

import bitquant
from benchmarks.timing import median_times
from bitquant import ops, processor
from bitquant.packed import PackedAttention, PackedLinear
from bitquant.runtime.shares import shares
from recipes.hubert.head import HubertHead
from recipes.hubert.model import Hubert

SAMPLES = 160_000
PLAIN, DN = "vanilla", "DN"
PRESETS = {PLAIN: "vanilla_fastconv", DN: "sparseformer_dn"}
BINARY_POSITIONS = bitquant.QuantConfig.preset("bit-plus", rules={"positional.conv": {}})
WORK = "BQ-DN {}".format


def build(wave, modes):
    """Name -> model: both float ones, the packed one as it is and in every mode, and with 1-bit positions."""
    models = {}
    for name, preset in PRESETS.items():
        torch.manual_seed(0)
        models[name] = Hubert.from_preset(preset).eval().requires_grad_(False)
    models["BQ-" + DN] = packed(models[DN], wave, "bit-plus")
    positions = packed(models[DN], wave, BINARY_POSITIONS)
    for mode in modes:
        models[f"{PLAIN} {mode}"] = optimized(models[PLAIN], mode)
        models[WORK(mode)] = optimized(models["BQ-" + DN], mode)
        models[f"{WORK(mode)}, 1-bit positions"] = optimized(positions, mode)
    return models


def packed(model, wave, config):
    """A packed copy; raises if its kernels differ from the definition."""
    model = copy.deepcopy(model)
    bitquant.quantize_(model, config, wave)
    bitquant.convert_(model)
    model.requires_grad_(False)
    out = model(wave).last_hidden_state
    with ops.use_backend("naive"):
        if not torch.equal(out, model(wave).last_hidden_state):
            raise click.ClickException("the packed model differs from its definition: no time is given")
    return model


def optimized(model, mode):
    model = copy.deepcopy(model)
    left = [row for row in bitquant.optimize_(model, mode) if row.reason and "not a float" not in row.reason]
    if left:
        raise click.ClickException(f"{left[0].path} was not optimized: {left[0].reason}")
    return model


def bits(model, wave):
    """Every bit that the packed linear layers and attentions take of their inputs, in the order of the run."""
    found, hooks = [], []

    def linear(layer, args):
        found.append((args[0] >= layer.offset if layer.signed else args[0] > layer.offset).flatten())

    def attention(layer, args):
        found.extend((x >= 0).flatten() for x in args[:3])

    for module in model.modules():
        if isinstance(module, (PackedLinear, PackedAttention)):
            hooks.append(module.register_forward_pre_hook(linear if isinstance(module, PackedLinear) else attention))
    try:
        features = model(wave).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return found, features


def changes(reference, model, wave):
    """What a mode changes: shares of flipped bits, cosine of features, and share of frames with the same class."""
    (before, expected), (after, features) = bits(reference, wave), bits(model, wave)
    torch.manual_seed(0)
    head = HubertHead(features.shape[-1], 256, (100,))
    chosen, wanted = (head(x[0])[0].argmax(-1) for x in (features, expected))
    result = {
        "largest_difference": ((features - expected).abs().max() / expected.abs().max()).item(),
        "cosine": F.cosine_similarity(features, expected, dim=-1).mean().item(),
        "same_class": (chosen == wanted).float().mean().item(),
    }
    if before:
        flips = [(a != b).float().mean().item() for a, b in zip(before, after, strict=True)]
        total = sum(a.numel() for a in before)
        result["flipped_first"] = flips[0]
        result["flipped"] = sum(share * a.numel() for share, a in zip(flips, before, strict=True)) / total
    return result


def factors(times, mode):
    """What the packed model in a mode is faster by, against the float baseline, and its three factors."""
    final = times[WORK(mode)]
    return {
        "architecture": times[PLAIN] / times[DN],
        "binarization": times[DN] / times["BQ-" + DN],
        "extractor work": times["BQ-" + DN] / final,
        "all": times[PLAIN] / final,
        "with 1-bit positions": times[PLAIN] / times[f"{WORK(mode)}, 1-bit positions"],
        "against the baseline with the same extractor work": times[f"{PLAIN} {mode}"] / final,
        "float DN to BQ-DN": times[DN] / final,
    }


@torch.inference_mode()
def measure(seconds):
    modes = ["exact", "fast"] if processor.bfloat16_is_fast() else ["exact"]
    wave = 0.1 * torch.randn(1, SAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False):
        models = build(wave.clone(), modes)
    calls = {name: (lambda m=model: m(wave)) for name, model in models.items()}
    times = {name: 1e3 * t for name, t in median_times(calls, seconds).items()}
    return {
        "milliseconds": times,
        "factors": {mode: factors(times, mode) for mode in modes},
        "changes": {
            name: changes(models[plain], models[name], wave)
            for mode in modes
            for plain, name in ((PLAIN, f"{PLAIN} {mode}"), ("BQ-" + DN, WORK(mode)))
        },
        "shares": {name: shares(models[name], wave) for name in (PLAIN, DN, "BQ-" + DN, *map(WORK, modes))},
    }


def show(result):
    times = result["milliseconds"]
    rows = [(name, f"{t:.1f}", f"{times[PLAIN] / t:.1f}") for name, t in times.items()]
    style = {"disable_numparse": True}
    headers = ("10 s of audio", "ms", "times faster")
    click.echo(tabulate(rows, headers=headers, colalign=("left", "right", "right"), **style))
    for mode, found in result["factors"].items():
        product = " x ".join(f"{found[part]:.2f} {part}" for part in ("architecture", "binarization", "extractor work"))
        click.echo(f"\n{mode}: {product} = {found['all']:.1f} times {PLAIN}")
        click.echo(", ".join(f"{name}: {value:.1f}" for name, value in list(found.items())[4:]))
    rows = [
        (name, f"{c['largest_difference']:.1e}", f"{c['cosine']:.4f}", f"{100 * c['same_class']:.1f} %",
         *(f"{100 * c[key]:.4f} %" if key in c else "-" for key in ("flipped_first", "flipped")))
        for name, c in result["changes"].items()
    ]  # fmt: skip
    headers = ("against the same model as it is", "largest", "cosine", "same class", "bits flipped, first", "all")
    click.echo("\n" + tabulate(rows, headers=headers, colalign=("left", *["right"] * 5), **style))
    for name, found in result["shares"].items():
        total = sum(found.values())
        parts = ", ".join(f"{kind} {100 * ms / total:.0f} %" for kind, ms in found.items() if ms > 0.01 * total)
        click.echo(f"\n{name}: {parts}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--threads", type=click.IntRange(1), help="Threads of every model.  [default: torch's own]")
@click.option("--seconds", default=20.0, show_default=True, help="Time spent on all models together.")
def main(as_json, threads, seconds):
    """Time the recipe's models from waveform to features."""
    if threads:
        torch.set_num_threads(threads)
    result = measure(seconds)
    facts = {"backend": ops.backends()[0].reason, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        click.echo(json.dumps(facts | result, indent=2))
        return
    click.echo(f"{facts['backend']}; {facts['threads']} threads; torch {facts['torch']}; equal to the definition\n")
    show(result)


if __name__ == "__main__":
    main()
