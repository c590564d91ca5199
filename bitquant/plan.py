"""Which contractions of a model are binarized, and why the others stay float (DESIGN contract 6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from bitquant.adapters import unmerged_adapters
from bitquant.blocks import encoder_blocks, within
from bitquant.capture import Discovery, Site
from bitquant.capture.discover import module_kind
from bitquant.config import QuantConfig
from bitquant.forms import float_path, has_form
from bitquant.nn.low_rank import LowRank
from bitquant.quantizers import FLOAT_BITS
from bitquant.record import Row

# The closed list of reasons why a contraction stays float; what is special about one is its row's note.
KEPT = "kept by the configuration"
STEM = "input stem"
HEAD = "task head"
JOINT = "between two layers, in neither"
POSITIONS = "position or type embedding"
TIED = "tied to a layer that stays float"
PARAMETER = "product with a parameter in another form"
UNSUPPORTED = "this use of the layer has no 1-bit form"
UNREACHED = "out of reach of the rewriting"
DIFFERS = "its module would compute something else if rewritten"
UNSEEN = "not run by the example inputs"
READ = "its weight is read directly by other code"
BESIDE = "the float path beside a 1-bit layer"
ADAPTER = "holds an adapter that is not merged"
CHANGED = "changed after quantize_"
REASONS = (
    KEPT, STEM, HEAD, JOINT, POSITIONS, TIED, PARAMETER, UNSUPPORTED, UNREACHED, DIFFERS, UNSEEN, READ, BESIDE, ADAPTER,
    CHANGED,
)  # fmt: skip
# notes
DEPTHWISE = "depthwise: one bit loses most there"
OVERRIDE = "a rule of its very name overrides this"
LARGE = 0.1  # share of the multiply-accumulates from which on a stem or head says so


class Decision(NamedTuple):
    """The configuration a contraction is binarized with, or None, one of ``REASONS``, and details if any."""

    config: QuantConfig | None
    reason: str | None = None
    note: str | None = None


class Plan:
    """Decides for every contraction of a model whether it is binarized.

    Raises:
        ValueError: a rule of the configuration matches no contraction of the model.
    """

    def __init__(self, model: nn.Module, discovery: Discovery, config: QuantConfig):
        sites = discovery.sites
        config.check_rules([*(site.path for site in sites), *discovery.never_called])
        self.model, self.discovery, self.config = model, discovery, config
        self.blocks = encoder_blocks(model, [site.path for site in sites if site.kind != "embedding"])
        self._outside = _outside(sites, self.blocks)
        self._adapters = unmerged_adapters(model)
        self._decisions = {site.path: self._decide(site) for site in sites}
        for path in self._float_ties() & set(self._decisions):
            if self._decisions[path].config is not None:
                self._decisions[path] = Decision(None, TIED)

    def decide(self, site: Site) -> Decision:
        """What becomes of a contraction; after the rewriting, with what that found out."""
        decision = self._decisions[site.path]
        if decision.config is not None and site.reason is not None:
            return Decision(None, DIFFERS, site.reason) if site.traced is None else decision._replace(note=site.reason)
        return decision

    def rows(self) -> list[Row]:
        """A row for every contraction, and for every layer that did not run and that no contraction accounts for."""
        rows = [Row.of(site, *self.decide(site)) for site in self.discovery.sites]
        accounted = {name for site in self.discovery.sites for name in site.parameters}
        names = _names(self.model)
        for path in self.discovery.never_called:
            module = self.model.get_submodule(path)
            own = [names[parameter] for parameter in module.parameters()]
            if accounted.isdisjoint(own):
                read = any("" in self.discovery.readers.get(name, ()) for name in own)
                reason = KEPT if self.config.for_module(path) is None else READ if read else UNSEEN
                rows.append(Row.of(Site(path, path, "", module_kind(module), "weight"), None, reason))
        return rows

    def rows_beside(self) -> list[Row]:
        """A row for every float path beside a layer."""
        return [Row.of(site, None, BESIDE) for site, _ in self.beside()]

    def beside(self) -> Iterator[tuple[Site, LowRank]]:
        """The float path, without values, beside every layer that has one, and a site of its own for it."""
        for site in self.discovery.sites:
            chosen = self.decide(site).config
            if chosen is not None and (path := float_path(self.model, site, chosen)) is not None:
                macs = path.macs(site.macs // (path.down.shape[1] * path.up.shape[0]))
                yield replace(site, path=f"{site.path}.float_path", role="low-rank", macs=macs), path

    def _decide(self, site: Site) -> Decision:
        chosen = self.config.for_module(site.path)
        if chosen is None:
            return Decision(None, KEPT)
        if any(within(site.path, adapter) for adapter in self._adapters):
            return Decision(None, ADAPTER)
        if chosen.depthwise == "float" and self._is_depthwise(site):
            return Decision(None, KEPT, DEPTHWISE)
        if site.kind == "embedding":
            if chosen.embedding_bits == FLOAT_BITS:
                return Decision(None, KEPT)
            fixed = site.dynamic[:1] == (False,)  # the same rows whatever the model is given: positions
            if fixed or re.fullmatch(chosen.float_embeddings, site.path):
                return Decision(None, POSITIONS)
        if site.traced is None and site.reason is not None:
            return Decision(None, DIFFERS if site.functional else UNREACHED, site.reason)
        if site.path in self._outside and site.path not in self.config.rules:  # a rule of its very name says otherwise
            return Decision(None, self._outside[site.path], self._override(site))
        if not has_form(self.model, site):
            return Decision(None, PARAMETER if site.by_parameter else UNSUPPORTED)
        return Decision(chosen)

    def _override(self, site: Site) -> str | None:
        """What to do about the stem, or the head, where much of the work is there."""
        reason = self._outside[site.path]
        macs = sum(s.macs for s in self.discovery.sites if self._outside.get(s.path) == reason)
        return OVERRIDE if reason != JOINT and macs >= LARGE * self.discovery.total_macs > 0 else None

    def _is_depthwise(self, site: Site) -> bool:
        layer = self.model.get_submodule(site.path) if site.traced == "module" else None
        return 1 < getattr(layer, "groups", 1) == layer.in_channels

    def _float_ties(self) -> set[str]:
        """Users of a shared weight of which at least one stays float: all their users are binarized or none is. A name
        of it that nothing calls is no user."""
        binarized = {path for path, decision in self._decisions.items() if decision.config is not None}
        users = self.discovery.readers.values()
        return set().union(*(paths for paths in users if not binarized.issuperset(paths)))


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    """The name by which the discovery knows a parameter, tied or not."""
    return {parameter: name for name, parameter in model.named_parameters()}


def _outside(sites: list[Site], blocks: list[str]) -> dict[str, str]:
    """Path -> reason of the contractions that are not the encoder's. A projection between two stacks of layers is, and
    so is a pooler, as in BiT; a module beside a stack that joins two of its layers, as to change the rate, is not."""
    sites = [site for site in sites if site.kind not in ("embedding", "embedding_bag") and not _is_loose(site)]
    stacks = [next((b.rpartition(".")[0] for b in blocks if within(site.path, b)), None) for site in sites]
    inside = [index for index, stack in enumerate(stacks) if stack is not None]
    if not inside:  # no repeated layers: the modules of the first and the last contraction are stem and head
        order = list(dict.fromkeys(_place(site) for site in sites))
        ends = {order[0]: STEM, order[-1]: HEAD} if len(order) > 2 else {}
        return {site.path: ends[_place(site)] for site in sites if _place(site) in ends}
    found = {site.path: STEM for site in sites[: inside[0]]}
    found |= {site.path: HEAD for site in sites[inside[-1] + 1 :]}
    for before, after in pairwise(inside):
        if (stack := stacks[before]) and stack == stacks[after]:
            found |= {site.path: JOINT for site in sites[before + 1 : after] if not within(site.path, stack)}
    return {path: reason for path, reason in found.items() if "pooler" not in path.split(".")}


def _is_loose(site: Site) -> bool:
    """Whether a product is out of reach and of no layer, such as the sum of a pooling: it is no stem and no head."""
    return site.out_of_reach and not any(site.parameters)


def _place(site: Site) -> str:
    """The module a site belongs to: the layer itself, or the owner of a functional contraction."""
    return site.path if site.traced == "module" else site.owner
