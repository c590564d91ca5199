"""Which contractions of a model are binarized, and why the others stay float (contract 6)."""

from __future__ import annotations

import re

from torch import nn

from bitquant.capture import Discovery, Site
from bitquant.config import QuantConfig

# The closed list of reasons why a contraction stays float.
KEPT = "kept by the configuration"
STEM = "input stem"
HEAD = "task head"
POSITIONS = "position or type embedding"
TIED = "tied to a layer that stays float"
PARAMETER = "product with a parameter in another form"
UNSUPPORTED = "this use of the layer has no 1-bit form"
UNSEEN = "not run by the example inputs"

_CONTAINERS = (nn.ModuleList, nn.Sequential)


class Plan:
    """Decides for every contraction of a model whether it is binarized.

    Raises:
        ValueError: a rule of the configuration matches no module of the model.
    """

    def __init__(self, model: nn.Module, discovery: Discovery, config: QuantConfig):
        config.check_rules({name for name, _ in model.named_modules() if name} | {s.path for s in discovery.sites})
        self.config = config
        weighted = [s.path for s in discovery.sites if s.role == "weight" and s.kind != "embedding"]
        self.blocks = encoder_blocks(model, weighted)
        self.order = list(dict.fromkeys(_place(s) for s in discovery.sites if s.kind != "embedding"))
        self.float_ties: set[str] = set()
        self.float_ties = self._float_ties(model, discovery)

    def decide(self, site: Site) -> tuple[QuantConfig | None, str | None]:
        """(configuration, None) when the site is binarized, (None, reason) when it stays float."""
        chosen = self.config.for_module(site.path)
        out_of_reach = site.reason if site.traced is None else None
        reason = KEPT if chosen is None else out_of_reach or self._reason(site, chosen)
        if reason is None and site.path in self.float_ties:
            reason = TIED
        return (chosen, None) if reason is None else (None, reason)

    def _reason(self, site: Site, chosen: QuantConfig) -> str | None:
        if site.kind == "embedding":
            if not chosen.embeddings:
                return KEPT
            return POSITIONS if re.fullmatch(chosen.float_embeddings, site.path) else None
        if (outside := self._outside(_place(site))) is not None:
            return outside
        return PARAMETER if site.by_parameter and not site.by_matrix else None

    def _outside(self, place: str) -> str | None:
        """The reason why a place outside the encoder stays float; None inside it (and for a pooler, as in BiT)."""
        if not self.blocks:  # no repeated layers: the first and the last contraction are stem and head
            return {self.order[0]: STEM, self.order[-1]: HEAD}.get(place) if len(self.order) > 2 else None
        inside = [any(_within(p, block) for block in self.blocks) for p in self.order]
        index = self.order.index(place)
        if inside[index] or "pooler" in place.split("."):
            return None
        return STEM if True not in inside[:index] else HEAD

    def _float_ties(self, model: nn.Module, discovery: Discovery) -> set[str]:
        """Users of a shared weight of which at least one stays float: all their users are binarized or none is."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        holders: dict[str, set[str]] = {}
        for path, module in model.named_modules():
            if isinstance(getattr(module, "weight", None), nn.Parameter):
                holders.setdefault(names[id(module.weight)], set()).add(path)
        binarized = {s.path for s in discovery.sites if self.decide(s)[0] is not None}
        ties: set[str] = set()
        for name in names.values():
            users = set(discovery.readers.get(name, ()))
            if len(holders.get(name, ())) > 1:  # a layer that did not run may run later
                users |= holders[name]
            if not binarized.issuperset(users):
                ties |= users
        return ties


def encoder_blocks(model: nn.Module, paths: list[str]) -> list[str]:
    """Paths of the encoder's layers: the outermost list elements that hold at least two of the weighted contractions
    at ``paths``."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, _CONTAINERS) and not any(_within(name, block) for block in found):
            for index, _ in module.named_children():
                block = f"{name}.{index}" if name else index
                if sum(_within(path, block) for path in paths) >= 2:
                    found.append(block)
    return found


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(block + ".")


def _place(site: Site) -> str:
    """The module a site belongs to: the layer itself, or the owner of a functional contraction."""
    return site.path if site.traced == "module" else site.owner
