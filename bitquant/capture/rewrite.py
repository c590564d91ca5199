"""From a traced call to code that runs: verification, removal of what a child replaces, compilation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from keyword import iskeyword

from torch import fx, nn
from torch.utils import _pytree as pytree

from . import reference
from .arguments import flatten
from .errors import TraceFailed
from .fallback import comparable
from .guards import is_guard
from .intercept import PREFIX
from .operands import packed_children
from .purity import Attributes, global_random_state, untouched
from .tracer import OwnerTracer
from .verify import autocast_eps, check_attention, compare, copied, trial

_IDENTIFIER, _NUMBER = re.compile("[A-Za-z_][A-Za-z0-9_]*"), re.compile("[0-9]+")


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
        """Raises TraceFailed where a name in the graph cannot be part of a program."""
        for node in graph.nodes:
            _check_writable(node)
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


def _check_writable(node: fx.Node):
    """torch.fx writes names into the code as they are, and a module's children may be named by a file."""
    named = [node.target] if node.op in ("call_module", "call_method", "get_attr") else []
    if node.op == "call_function" and node.target is getattr and isinstance(node.args[1], str):
        named.append(node.args[1])
    parts = [part for name in named for part in name.split(".") if not _NUMBER.fullmatch(part)]
    for part in (*parts, *node.kwargs):
        if not _IDENTIFIER.fullmatch(part) or iskeyword(part):
            raise TraceFailed(f"the name {part[:40]!r} cannot be written as code")


def rewrite(owner: nn.Module, forward, args, kwargs, device: str) -> Rewritten:
    """Trace one call of `owner`, check the trace against the original on the same call, and compile it.

    The model is left as it was: buffers, parameters, attributes and random state are restored.

    Raises:
        TraceFailed: where the graph would not do what the original does.
    """
    attributes = Attributes(owner)
    expected = trial(owner, comparable(owner, forward), args, kwargs, forbid_changes=True)
    tracer = OwnerTracer(owner, forward, device)
    try:
        with untouched(owner):
            before = global_random_state()
            graph = tracer.trace_call(args, kwargs)
            if global_random_state() != before:
                raise TraceFailed("forward draws from a random generator other than torch's")
    finally:
        attributes.restore()
    with untouched(owner):
        leaves, _ = flatten(*copied((args, kwargs)))
        got = _Check(owner, graph, tracer.fused, autocast_eps(device)).run(*leaves)
    if tracer.out_spec is not None:
        got = pytree.tree_unflatten(got, tracer.out_spec)
    compare(expected, got, autocast_eps(device))
    for _, chain in tracer.fused:
        _remove(graph, chain)
    return Rewritten.compile(graph, tracer.out_spec, tracer.unwrapped)


class _Check(fx.Interpreter):
    """Runs a graph with float children, but for those whose weight exists only as bits; each fused attention is
    checked, and gives what the chain it replaces gives."""

    def __init__(self, owner, graph, fused, eps):
        super().__init__(owner, garbage_collect_values=False, graph=graph)
        self.chains, self.eps = dict(fused), eps
        self.packed = packed_children(owner, owner._capture.operands)

    def run_node(self, n):
        chain = self.chains.get(n)
        if chain is None:
            return super().run_node(n)
        operands, kwargs = self.fetch_args_kwargs_from_env(n)
        undropped, weights = self.env[chain.softmax.node], self.env[chain.weights.node]
        check_attention(chain, undropped, weights, operands, self.eps, **kwargs)
        return chain.times(weights, operands[2])

    def call_module(self, target, args, kwargs):
        if target.startswith(PREFIX) and "." not in target and target not in self.packed:
            return reference.FLOAT[reference.kind_of(target)](*args, **kwargs)
        return super().call_module(target, args, kwargs)


def _remove(graph, chain):
    """Erase the float attention a child stands for, unless something else reads part of it (returned weights)."""
    nodes = [step.node for step in chain.steps]
    inside = set(nodes)
    if any(user not in inside for node in nodes for user in node.users):
        return
    for node in reversed(nodes):
        graph.erase_node(node)
