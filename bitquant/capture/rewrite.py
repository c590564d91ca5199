"""From a traced call to code that runs: verification, removal of what a child replaces, compilation."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from . import reference
from .arguments import flatten
from .errors import TraceFailed
from .guards import is_guard
from .intercept import PREFIX
from .purity import Attributes, global_random_state, restored
from .tracer import OwnerTracer


@dataclass(frozen=True)
class Rewritten:
    """One graph of one owner, compiled.

    Args:
        run (callable): run(owner, *leaves).
        source (str): the code behind `run`.
        graph (fx.Graph): the graph behind the code.
        out_spec (TreeSpec | None): how the result is put together, None where the code returns it as it is.
        guarded (bool): whether it may refuse a call.
        unwrapped (tuple[str, ...]): products it leaves in float.
    """

    run: object
    source: str
    graph: fx.Graph
    out_spec: object
    guarded: bool
    unwrapped: tuple

    @classmethod
    def compile(cls, graph: fx.Graph, out_spec, unwrapped=()) -> Rewritten:
        code = graph.python_code("self")
        scope = dict(code.globals)
        exec(code.src, scope)
        guarded = any(is_guard(node) for node in graph.nodes)
        return cls(scope["forward"], code.src, graph, out_spec, guarded, tuple(unwrapped))

    def __call__(self, owner, leaves):
        out = self.run(owner, *leaves)
        return out if self.out_spec is None else pytree.tree_unflatten(out, self.out_spec)

    def __deepcopy__(self, memo):
        return self  # nothing in it belongs to one model


def rewrite(owner: nn.Module, forward, args, kwargs, device: str) -> Rewritten:
    """Trace one call of `owner`, check the trace against the original on the same call, and compile it.

    The model is left as it was: buffers, parameters, attributes and random state are restored.

    Raises:
        TraceFailed: where the graph would not do what the original does.
    """
    state, attributes = [*owner.parameters(), *owner.buffers()], Attributes(owner)
    expected = trial(owner, forward, args, kwargs, forbid_changes=True)
    tracer = OwnerTracer(owner, forward, device)
    try:
        with restored(state):
            before = global_random_state()
            graph = tracer.trace_call(args, kwargs)
            if global_random_state() != before:
                raise TraceFailed("forward draws from a random generator other than torch's")
    finally:
        attributes.restore()
    with restored(state):
        leaves, _ = flatten(*_copied((args, kwargs)))
        with torch.no_grad():
            got = _Check(owner, graph, tracer.fused).run(*leaves)
    if tracer.out_spec is not None:
        got = pytree.tree_unflatten(got, tracer.out_spec)
    compare(expected, got, autocast_eps(device))
    for _, chain in tracer.fused:
        _remove(graph, chain)
    return Rewritten.compile(graph, tracer.out_spec, tracer.unwrapped)


def trial(owner: nn.Module, forward, args, kwargs, forbid_changes: bool = False):
    """The detached result of `forward` on copies of the arguments; afterwards everything is as it was.

    Raises:
        TraceFailed: with `forbid_changes`, where forward changes attributes of its module.
    """
    attributes = Attributes(owner)
    try:
        with restored([*owner.parameters(), *owner.buffers()]):
            call = _copied((args, kwargs))
            out = forward(owner, *call[0], **call[1])
            changed = attributes.changed()
            out = pytree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, out)
    finally:
        attributes.restore()
    if changed and forbid_changes:
        raise TraceFailed(f"forward changes {changed[0]!r} of its module")
    return out


class _Check(fx.Interpreter):
    """Runs a graph with float children, and each fused attention against the chain it stands for."""

    def __init__(self, owner, graph, fused):
        super().__init__(owner, garbage_collect_values=False, graph=graph)
        self.chains = dict(fused)

    def run_node(self, n):
        chain = self.chains.get(n)
        if chain is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value, weights, undropped = args[2], self.env[chain.weights.node], self.env[chain.softmax.node]

        def product(left):
            if chain.final is not None:
                left = left.reshape(*value.shape[:-2], *left.shape[-2:])
            return torch.matmul(left.to(value.dtype), value)

        compare(product(undropped), reference.attention(*args, **kwargs))
        return product(weights)

    def call_module(self, target, args, kwargs):
        if target.startswith(PREFIX) and "." not in target:
            return reference.FLOAT[reference.kind_of(target)](*args, **kwargs)
        return super().call_module(target, args, kwargs)


def _copied(structure):
    """A copy of call arguments; anything that is neither tensor nor constant (a cache object) is copied deeply."""

    def copy_of(x):
        if isinstance(x, torch.Tensor):
            # the clone of a leaf is none, so that it may be changed in place as the original argument may
            return x.detach().requires_grad_(x.requires_grad).clone()
        return copy.deepcopy(x)

    memo = {}
    return pytree.tree_map(lambda x: memo.setdefault(id(x), copy_of(x)), structure)


def autocast_eps(device: str) -> float:
    """Rounding of the autocast dtype, 0 outside of autocast."""
    return torch.finfo(torch.get_autocast_dtype(device)).eps if torch.is_autocast_enabled(device) else 0.0


def compare(expected, got, eps: float = 0.0):
    """Raise `TraceFailed` where two results differ by more than rounding (of their dtype, or `eps` where larger)."""
    expected, got = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    if len(expected) != len(got):
        raise TraceFailed("the graph returns another number of results than the original")
    for a, b in zip(expected, got, strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            raise TraceFailed("the graph returns another shape or dtype than the original")
        if not a.is_floating_point():
            if not torch.equal(a, b):
                raise TraceFailed("the graph returns other integers than the original")
            continue
        tolerance = max(2000 * torch.finfo(a.dtype).eps, 16 * eps)
        a, b = a.double(), b.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            raise TraceFailed("the graph returns other infinities or NaNs than the original")
        a, b = a.nan_to_num(), b.nan_to_num()
        error = ((a - b).abs().max() / (1 + a.abs().max())).item() if a.numel() else 0.0
        if not error <= tolerance:
            raise TraceFailed(f"the graph differs from the original by {error:.1e}")


def _remove(graph, chain):
    """Erase the float attention a child stands for, unless something else reads part of it (returned weights)."""
    nodes = [step.node for step in chain.steps]
    inside = set(nodes)
    if any(user not in inside for node in nodes for user in node.users):
        return
    for node in reversed(nodes):
        graph.erase_node(node)
