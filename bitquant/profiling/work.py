"""What a model computes: one `Work` a product, read off the captured graph, float and quantized models alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bitquant.capture import Site, check_model, discover
from bitquant.capture.fallback import innermost_module
from bitquant.config import QuantConfig
from bitquant.plan import Plan
from bitquant.profiling.calls import quantized_sites
from bitquant.record import is_quantized, record_of


@dataclass
class Work:
    """One product, or the softmax between two.

    Args:
        path: module path; the two products of an attention are rows of their own.
        kind: "linear", "conv1d", "attention", "matmul", ...
        component: "feed-forward", "projection" (of an attention), "product" (of two activations), "pointwise",
            "depthwise", "convolution", "linear", "embedding", or "pairs" (softmax over pairs of frames).
        family: of the encoder block around it: "convolution" if it holds one, else "attention"; outside the blocks
            "stem" before the first and "other" after it.
        block: path of the encoder block, "" outside.
        macs: of one run; for "pairs" the number of (head, query, key) triples.
        density: share of an attention's pairs that its boolean mask keeps.
        width: channels of all heads, queries: per sequence and frames: in the whole batch; for "pairs" only.
        units: inner activations of a feed-forward module, at the layer that makes them.
        weight_bits, activation_bits: 32 in float. weight: full name of the parameter that the first is about.
        added: parameters, in fp16, that the model does not have yet: of a float path it would get.
    """

    path: str
    kind: str
    component: str
    family: str
    block: str
    macs: int
    density: float = 1.0
    width: int = 0
    queries: int = 0
    frames: int = 0
    units: int = 0
    weight_bits: int = 32
    activation_bits: int = 32
    weight: str | None = None
    added: int = 0

    @property
    def quantized(self) -> bool:
        return self.activation_bits < 16


def work_of(model: nn.Module, example_inputs: Any, *, config: QuantConfig, bits: tuple[int, int] | None) -> list[Work]:
    """The products of one run of ``model``, in call order.

    Args:
        config: which layers a float model would have binarized; ``bits``: (weight, activation) widths it would then
            have, None for the float model as it is.

    Raises:
        CaptureError: the model does not run on ``example_inputs``.
    """
    if is_quantized(model):
        record = record_of(model)
        rows = {row.path: row for row in record.rows}
        sites, quantized = quantized_sites(model, example_inputs)
        widths = {path: (rows[path].weight_bits or 1, rows[path].activation_bits) if path in rows else (1, 1)
                  for path in quantized}  # fmt: skip
        places, densities, beside = _Places(model, record.blocks, sites), _Densities(model), []
    else:
        check_model(model)
        with _Densities(model) as densities:
            discovery = discover(model, example_inputs)
        plan, sites = Plan(model, discovery, config), discovery.sites
        widths = {
            site.path: (max(bits[0], chosen.table_bits), 32) if site.kind == "embedding" else bits
            for site in sites
            if bits is not None and (chosen := plan.decide(site).config) is not None
        }
        beside = [] if bits is None else plan.beside()
        places = _Places(model, plan.blocks, sites)
    works = []
    for site in sites:
        work = places.work(site, densities.of(site.owner))
        work.weight_bits, work.activation_bits = widths.get(site.path, (32, 32))
        works += places.split(work, site)
    for site, path in beside:
        added = sum(factor.numel() for factor in path.parameters())
        works.append(replace(places.work(replace(site, kind="linear"), 1.0), weight=None, units=0, added=added))
    return works


class _Places:
    """Where products are: their block, and what part of it."""

    def __init__(self, model: nn.Module, blocks: list[str], sites: list[Site]):
        self.model, self.blocks = model, blocks
        held = {site.path: _block_of(site.path, blocks) for site in sites}
        self.convolutional = {block for path, block in held.items() for site in sites
                              if site.path == path and block and "conv" in site.kind}
        self.scopes = {_below(site.owner, held[site.path]) for site in sites if _is_product(site) and held[site.path]}
        self.entered = False

    def work(self, site: Site, density: float) -> Work:
        block = _block_of(site.path, self.blocks)
        if block:
            self.entered = True
            family = "convolution" if block in self.convolutional else "attention"
        else:
            family = "other" if self.entered else "stem"
        work = Work(site.path, site.kind, self._component(site, block), family, block, site.macs)
        work.weight = f"{site.path}.weight" if site.path == site.owner else next(filter(None, site.parameters), None)
        if work.component == "feed-forward":
            *rows, features = site.shapes[0]
            units = site.macs // features  # rows x outputs
            work.units = units if units > math.prod(rows) * features else 0
        work.density = density if site.kind == "attention" else 1.0
        return work

    def _component(self, site: Site, block: str) -> str:
        if _is_product(site):
            return "product"
        if site.kind == "embedding":
            return "embedding"
        if "conv" in site.kind:
            return _conv_component(self.model, site)
        if not block or not self.scopes:
            return "linear"
        return "projection" if any(_within(site.path, scope) for scope in self.scopes if scope) else "feed-forward"

    @staticmethod
    def split(work: Work, site: Site) -> list[Work]:
        """An attention as its two products and the softmax between them."""
        if site.kind != "attention":
            return [work]
        query, key = site.shapes[0], site.shapes[1]
        scores = math.prod(query[:-1]) * key[-2] * site.calls
        first = scores * query[-1]
        heads = query[-3] if len(query) > 3 else 1
        values = vars(work)
        return [
            Work(**{**values, "path": f"{work.path}.qk", "macs": first}),
            Work(**{**values, "path": f"{work.path}.softmax", "component": "pairs", "macs": scores,
                    "width": heads * query[-1], "queries": query[-2], "frames": math.prod(query[:-1]) // heads}),
            Work(**{**values, "path": f"{work.path}.pv", "macs": site.macs - first}),
        ]  # fmt: skip


def _is_product(site: Site) -> bool:
    return site.kind in ("attention", "matmul", "einsum")


def _conv_component(model: nn.Module, site: Site) -> str:
    try:
        module = model.get_submodule(site.path)
    except AttributeError:
        return "convolution"
    groups, kernel = getattr(module, "groups", 1), getattr(module, "kernel_size", ())
    if groups > 1 and groups == getattr(module, "in_channels", 0):
        return "depthwise"
    return "pointwise" if kernel and set(kernel) == {1} else "convolution"


def _block_of(path: str, blocks: list[str]) -> str:
    return next((block for block in blocks if _within(path, block)), "")


def _below(path: str, block: str) -> str:
    """The ancestor of a module directly below its block; "" for the block itself."""
    rest = path[len(block) + 1 :]
    return f"{block}.{rest.split('.')[0]}" if rest else ""


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(module + ".")


class _Densities(TorchFunctionMode):
    """Share of True in the boolean masks that attention is called with, by the module that calls it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.paths = {module: path for path, module in model.named_modules()}
        self.found: dict[str, float] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and not mask.is_meta:
                with torch._C.DisableTorchFunction():
                    self.found[self.paths.get(innermost_module(), "")] = mask.double().mean().item()
        return func(*args, **kwargs)

    def of(self, owner: str) -> float:
        return self.found.get(owner, 1.0)
