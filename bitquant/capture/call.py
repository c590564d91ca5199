"""What one call of one module issues during discovery: its products, as sites with a role."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_iter

from ..masks import is_padding_mask
from .functions import function_name
from .intercept import PREFIX, Interceptor
from .sites import UNCOUNTED

MODULE_FORWARDS = {
    nn.Linear.forward: ("linear", F.linear),
    nn.Conv1d.forward: ("conv1d", F.conv1d),
    nn.Conv2d.forward: ("conv2d", F.conv2d),
    nn.Conv3d.forward: ("conv3d", F.conv3d),
    nn.Embedding.forward: ("embedding", F.embedding),
}


class ModuleCall(Interceptor):
    """One call of one module during discovery."""

    def __init__(self, recorder, module, path, through):
        super().__init__()
        self.recorder, self.module, self.path, self.transparent = recorder, module, path, through
        self.own = MODULE_FORWARDS.get(type(module).forward)

    def measured(self, func, args, kwargs, reader=""):
        before = self.recorder.macs.total
        known = self.recorder.ledger.known(args, kwargs)
        out = func(*args, **kwargs)
        self.recorder.ledger.follow(known, func, args, kwargs, out, reader)
        return out, self.recorder.macs.total - before

    def plain(self, func, args, kwargs):
        own = self.own and func is self.own[1]
        uncounted = self.recorder.macs.uncounted
        out, macs = self.measured(func, args, kwargs, self.path if own else "")
        if own:
            self.module_site(args, kwargs, macs)
        elif func is F.embedding:
            self.embedding_site(args, kwargs)
        elif macs or func is F.embedding_bag:
            self.unknown_site(func, args, kwargs, macs)
        elif uncounted != self.recorder.macs.uncounted:
            self.unknown_site(func, args, kwargs, 0).reason = UNCOUNTED
        if args and function_name(func)[0] == "softmax":
            self.mark_flow(args[0])
        return out

    def product(self, name, kind, func, args, kwargs):
        own = self.own and func is self.own[1]
        out, macs = self.measured(func, args, kwargs, self.path if own else self.join(name))
        if own:
            self.module_site(args, kwargs, macs)
            return out
        operands = _operands(kind, args, kwargs)
        site = self.functional_site(name, kind, "attention" if kind == "attention" else "unknown", operands)
        site.macs += macs
        if kind == "attention":
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            site.score_bias |= mask is not None and self.is_bias(mask)
            if mask is not None:
                self.mark_flow(mask, "relative-position")
        else:
            self.give_role(site, operands)
            ledger = self.recorder.ledger
            ledger.put(out, replace(ledger.get(out), flow=frozenset({site.path})))
        return out

    def attention(self, name, chain, value):
        """Remember the pair of matmuls; whether they become one attention is known at the end of the run."""
        query, key, ledger = chain.query, chain.key.transpose(-2, -1), self.recorder.ledger
        ledger.put(key, ledger.get(chain.key))
        first = self.join(chain.product)
        if self.recorder.sites[first].role == "parameter":
            return NotImplemented
        site = self.functional_site(name, "attention", "attention", (query, key, value))
        second = self.join(f"{PREFIX}matmul_{self._counts['matmul'] - 1}")
        biased = any(op in ("add", "sub") and self.is_bias(mask) for op, mask in chain.masks)
        pair = self.recorder.attention.setdefault(site.path, [(first, second), False])
        pair[1] |= biased
        return NotImplemented

    # sites

    def join(self, name):
        return f"{self.path}.{name}" if self.path else name

    def functional_site(self, name, kind, role, operands):
        site = self.recorder.site(self.join(name), self.path, name, kind, role, operands)
        if isinstance(self.module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            site.name, site.reason = "", "its owner runs every child it has, so no child can be added"
        elif "forward" in vars(self.module):
            site.name, site.reason = "", "its owner's forward is replaced on the instance"
        return site

    def module_site(self, args, kwargs, macs):
        kind = self.own[0]
        operands = _operands(kind, args, kwargs)
        site = self.recorder.site(self.path, self.path, "", kind, "weight", operands)
        site.traced = "module"
        site.macs += macs
        if "forward" in vars(self.module):
            site.traced, site.reason = None, "its forward is replaced on the instance"

    def embedding_site(self, args, kwargs):
        """A table that is looked up by other code than nn.Embedding's own."""
        operands = _operands("embedding", args, kwargs)
        if isinstance(self.module, nn.Embedding) and operands[1] is self.module.weight:
            site = self.recorder.site(self.path, self.path, "", "embedding", "weight", operands)
            site.reason = f"{type(self.module).__name__} has a forward of its own"
        else:
            path = self.join(f"embedding_{self._counts['embedding']}")
            self._counts["embedding"] += 1
            site = self.recorder.site(path, self.path, "", "embedding", "parameter", operands)
            site.reason = "the table is looked up by a function"

    def unknown_site(self, func, args, kwargs, macs):
        kind = function_name(func)[0] or "unknown"
        operands = [a for a in tree_iter((args, kwargs)) if isinstance(a, torch.Tensor)]
        path = self.join(f"{kind}_{self._counts['unknown']}")
        self._counts["unknown"] += 1
        site = self.recorder.site(path, self.path, "", kind, "unknown", operands)
        site.macs += macs
        site.reason = f"no 1-bit counterpart of {kind}"
        return site

    # roles

    def is_bias(self, mask) -> bool:
        """Whether an additive mask changes scores other than by taking keys out."""
        return self.recorder.ledger.get(mask).learned or not is_padding_mask(mask)

    def give_role(self, site, operands):
        known = [self.recorder.ledger.get(x) for x in operands]
        fixed = [f.learned and not f.dynamic for f in known]
        if any(f.source and f.learned for f in known) or (site.kind.endswith("_fn") and any(fixed[1:])):
            site.role = "parameter"
        elif any(f.weights for f in known):
            site.role = "pv"
        elif not any(f.dynamic for f in known):
            site.role = "constant"
        if not all(f.dynamic for f in known):
            self.recorder.static.add(site.path)

    def mark_flow(self, tensor, role=None):
        """Give their role to the products that flow into attention scores."""
        for path in self.recorder.ledger.get(tensor).flow:
            site = self.recorder.sites.get(path)
            if site is not None and site.role in ("unknown", "constant"):
                site.role = role or ("relative-position" if path in self.recorder.static else "qk")


def _operands(kind, args, kwargs):
    """The tensor operands of a product in the order of the child's signature, without bias and mask."""
    if kind == "einsum":
        return [a for a in tree_iter(args) if isinstance(a, torch.Tensor)]
    names = ("query", "key", "value") if kind == "attention" else ("input", "weight")
    return [*args, *(kwargs[n] for n in names if n in kwargs)][: len(names)]
