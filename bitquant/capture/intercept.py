"""One call of one owner, function by function: numbers its products and decides which child stands for them."""

from __future__ import annotations

from collections import Counter

from .attention import Chain, Chains
from .functions import product_kind
from .operands import Operands

PREFIX = "bit_"


class Interceptor:
    """Base of discovery, of the fall-back and of the tracer, which therefore use the same names.

    A product is number n of its kind within one call of its owner, counted whether or not a child stands for it: the
    names do not depend on the configuration. Attention that is spelled out is numbered as attention at its second
    matmul, on top of its two matmuls.
    """

    def __init__(self, value=lambda handle: handle):
        self._counts = Counter()
        self.chains = Chains(value)
        self.operands: Operands | None = None  # where there are children, the parameters they were made for

    def next_name(self, kind: str) -> str:
        name = f"{PREFIX}{kind}_{self._counts[kind]}"
        self._counts[kind] += 1
        return name

    # what a subclass decides

    def plain(self, func, args, kwargs):
        """Run (or record) the function itself."""
        raise NotImplementedError

    def product(self, name: str, kind: str, func, args, kwargs):
        """Run (or record) a product, through the child `name` where there is one."""
        raise NotImplementedError

    def attention(self, name: str, chain: Chain, value):
        """Run (or record) spelled-out attention as one child; NotImplemented leaves it as two products."""
        raise NotImplementedError

    # what all have in common

    def call(self, func, args, kwargs):
        """The result of `func(*args, **kwargs)`; compound functions are decomposed before they get here."""
        kind = product_kind(func, kwargs)
        if kind is None:
            carried = self.chains.find(args, kwargs)  # before the call: it may work in place
            out = self.plain(func, args, kwargs)
            if carried is not None:
                self.chains.follow(carried, func, args, kwargs, out)
            if self.operands is not None:
                self.operands.follow(func, args, out)
            return out
        if kind != "matmul":
            return self.product(self.next_name(kind), kind, func, args, kwargs)
        first, second = (*args, *kwargs.values())
        name = self.next_name("matmul")
        chain = self.chains.weights(first, second)
        if chain is not None:
            out = self.attention(self.next_name("attention"), chain, second)
            if out is not NotImplemented:
                return out
        out = self.product(name, kind, func, (first, second), {})
        self.chains.start(first, second, out, name)
        return out
