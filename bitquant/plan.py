"""Which contractions of a model are binarized, and why the others stay float (DESIGN contract 6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from bitquant.capture import Discovery, Site
from bitquant.config import QuantConfig

# The closed list of reasons why a contraction stays float.
KEPT = "kept by the configuration"
STEM = "input stem"
HEAD = "task head"
POSITIONS = "position or type embedding"
TIED = "tied to a layer that stays float"
CONVOLUTION = "convolutions are not binarized yet"
PARAMETER = "product with a parameter outside a layer"
UNSUPPORTED = "this use of the layer has no 1-bit form"
UNSEEN = "not run by the example inputs"

_CONTAINERS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class Decision:
    """What happens to one site: binarized by ``config``, or left in float with a ``reason``."""

    site: Site
    config: QuantConfig | None
    reason: str | None


def encoder_blocks(model: nn.Module, paths: list[str]) -> list[str]:
    """Paths of the encoder's layers: the outermost list elements that hold at least two weighted contractions."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, _CONTAINERS) and not any(name.startswith(block + ".") for block in found):
            for index, _ in module.named_children():
                block = f"{name}.{index}" if name else index
                if sum(path.startswith(block + ".") for path in paths) >= 2:
                    found.append(block)
    return found


def _position(path: str, order: list[str], blocks: list[str]) -> str | None:
    """The reason why a site outside the encoder stays float; None inside it (and for a pooler, as in BiT)."""
    if not blocks:  # no repeated layers: the first and the last contraction are stem and head
        if len(order) < 3:
            return None
        return {order[0]: STEM, order[-1]: HEAD}.get(path)
    inside = [any(p.startswith(block + ".") for block in blocks) for p in order]
    index = order.index(path)
    if inside[index] or "pooler" in path.split("."):
        return None
    return STEM if True not in inside[:index] else HEAD


def decide(model: nn.Module, discovery: Discovery, config: QuantConfig) -> list[Decision]:
    """One decision per site of ``discovery``, in its order. ValueError when a rule matches nothing."""
    sites = discovery.sites
    config.check_rules({name for name, _ in model.named_modules() if name} | {site.path for site in sites})
    order = [site.path for site in sites if site.kind != "embedding"]
    weighted = [site.path for site in sites if site.role == "weight" and site.kind != "embedding"]
    blocks = encoder_blocks(model, weighted)
    decisions = [_decide(site, order, blocks, config) for site in sites]
    return _untie(model, decisions)


def _decide(site: Site, order: list[str], blocks: list[str], config: QuantConfig) -> Decision:
    chosen = config.for_module(site.path)
    if chosen is None:
        return Decision(site, None, KEPT)
    if site.reason is not None:
        return Decision(site, None, site.reason)
    if site.kind == "embedding":
        if not chosen.embeddings:
            return Decision(site, None, KEPT)
        named = re.fullmatch(chosen.float_embeddings, site.path)
        return Decision(site, None, POSITIONS) if named else Decision(site, chosen, None)
    if (reason := _position(site.path, order, blocks)) is not None:
        return Decision(site, None, reason)
    if site.kind.startswith("conv"):
        return Decision(site, None, CONVOLUTION)
    if site.role == "parameter":
        return Decision(site, None, PARAMETER)
    return Decision(site, chosen, None)


def _untie(model: nn.Module, decisions: list[Decision]) -> list[Decision]:
    """Tied weights: all their users are binarized or none is."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            users.setdefault(id(module.weight), []).append(name)
    binarized = {d.site.path for d in decisions if d.config is not None}
    float_ties = {name for names in users.values() if len(names) > 1 and not binarized.issuperset(names) for name in names}
    return [Decision(d.site, None, TIED) if d.site.path in float_ties and d.config else d for d in decisions]
