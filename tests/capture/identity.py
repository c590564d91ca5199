"""Rewriting with children that compute in float: the rewritten model must equal the original."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from bitquant.capture import discover, mutate_class_, wrap_owners_
from bitquant.capture.macs import MacCounter

FUNCTIONS = {
    "attention": F.scaled_dot_product_attention,
    "matmul": torch.matmul,
    "einsum": torch.einsum,
    "linear_fn": F.linear,
    "conv1d_fn": F.conv1d,
    "conv2d_fn": F.conv2d,
}


class Meter(MacCounter):
    """Multiply-accumulates of a run, and those inside rewritten modules and children."""

    running = None

    def __init__(self):
        super().__init__()
        self.inside = 0

    def __enter__(self):
        Meter.running = self
        return super().__enter__()

    def __exit__(self, *args):
        Meter.running = None
        return super().__exit__(*args)


@contextlib.contextmanager
def inside():
    meter = Meter.running
    before = meter.total if meter else 0
    yield
    if meter:
        meter.inside += meter.total - before


class Child(nn.Module):
    """Stands for one product and computes it as torch does."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, *args, **kwargs):
        with inside():
            return FUNCTIONS[self.kind](*args, **kwargs)


class Counted:
    """A linear or convolution module that says what it computes."""

    def forward(self, *args, **kwargs):
        with inside():
            return super().forward(*args, **kwargs)


def rewrite_(model, example_inputs, make_child=lambda site: Child(site.kind)):
    """Everything rewritten with float children; returns the discovery."""
    discovery = discover(model, example_inputs)
    wrap_owners_(model, discovery, make_child, example_inputs)
    for site in discovery.sites:
        if site.traced == "module":
            mutate_class_(model.get_submodule(site.path), Counted)
    return discovery


def tensors(output):
    """Every tensor of an output."""
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]


def call(model, inputs):
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def difference(first, second):
    """Largest difference of two outputs relative to 1 + the largest value."""
    first, second = tensors(first), tensors(second)
    assert [t.shape for t in first] == [t.shape for t in second]
    pairs = [(a.double(), b.double()) for a, b in zip(first, second, strict=True) if a.numel()]
    return max(((a - b).abs().max() / (1 + b.abs().max())).item() for a, b in pairs)


def gradients(model, inputs):
    """Gradients of a fixed weighted sum of all outputs, by parameter name."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    outputs = [t for t in tensors(call(model, inputs)) if t.requires_grad]
    sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in outputs).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradient_difference(first, second):
    assert first.keys() == second.keys()
    return max(((first[k] - second[k]).abs().max() / (1e-3 + second[k].abs().max())).item() for k in second)


def double(inputs):
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
