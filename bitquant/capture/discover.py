"""Discovery: one eager run finds every product of a model and the module that issues it."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from ..masks import is_padding_mask
from .attention import transparent
from .decompose import decomposition
from .errors import CaptureError
from .facts import Facts, Ledger
from .functions import function_name
from .intercept import PREFIX, Interceptor
from .macs import MacCounter
from .mutate import is_mutated
from .parameters import PART
from .run import bind, run
from .sites import Discovery, Site

_MODULE_FORWARDS = {
    nn.Linear.forward: ("linear", F.linear),
    nn.Conv1d.forward: ("conv1d", F.conv1d),
    nn.Conv2d.forward: ("conv2d", F.conv2d),
    nn.Conv3d.forward: ("conv3d", F.conv3d),
    nn.Embedding.forward: ("embedding", F.embedding),
}

_LINEAR_KINDS = ("linear", "linear_fn")


def module_kind(module: nn.Module) -> str | None:
    """The kind of site a linear, convolution or embedding module is; None for others and for a forward of its own."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    return _MODULE_FORWARDS.get(type(module).forward, (None,))[0]


def discover(model: nn.Module, example_inputs) -> Discovery:
    """Find every linear, convolution, embedding, attention and matrix product of a model.

    Args:
        model (nn.Module): any model; it is run once in eval mode and left as it was.
        example_inputs (Tensor | tuple | dict): what the model is called with.

    Returns:
        Discovery: the products in call order, with multiply-accumulates counted independently at ATen level.

    Raises:
        CaptureError: where `example_inputs` are missing, the model does not run on them, or it is rewritten already.
    """
    args, kwargs = bind(example_inputs)
    rewritten = next((path for path, module in model.named_modules() if is_mutated(module)), None)
    if rewritten is not None:
        raise CaptureError(f"{rewritten or 'the model'} is rewritten already: discover the products of the original")
    recorder = _Recorder(model)
    for leaf in tree_iter((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            recorder.ledger.put(leaf, Facts(dynamic=True))
    with recorder.watching():
        run(model, example_inputs)
    return recorder.result()


class _Recorder(TorchFunctionMode):
    """Attributes every torch function to the innermost module and keeps the sites."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.ledger = Ledger(model)
        self.macs = MacCounter()
        self.sites: dict[str, Site] = {}
        self.attention: dict[str, list] = {}  # path -> [paths of its two matmuls, whether a bias is added between]
        self.static: set[str] = set()  # products with an operand that does not depend on the model's input
        self.stack: list[_Call] = []
        self._readers: dict[int, tuple] = {}  # id of an input tensor -> (weak reference, path of its first reader)

    @contextlib.contextmanager
    def watching(self):
        paths = {module: path for path, module in self.model.named_modules()}
        through = {module for module in paths if transparent(module)}

        def enter(module, args):
            self.stack.append(_Call(self, module, paths[module], module in through))

        def leave(module, args, out):
            self.stack.pop()

        handles = []
        for module in paths:
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            with self.macs, self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self.stack.clear()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.stack:
            return func(*args, **kwargs)
        simpler = decomposition(func, args, kwargs)
        if simpler is not None:
            with self:
                return simpler(*args, **kwargs)
        call = self.stack[-1]
        if call.transparent:
            call = next((c for c in reversed(self.stack) if not c.transparent), call)
        return call.call(func, args, kwargs)

    # sites

    def site(self, path, owner, name, kind, role, operands) -> Site:
        site = self.sites.get(path)
        if site is None:
            known = [self.ledger.get(x) for x in operands]
            site = self.sites[path] = Site(
                path,
                owner,
                name,
                kind,
                role,
                shapes=tuple(tuple(x.shape) for x in operands),
                nonnegative=tuple(f.nonnegative for f in known),
                dynamic=tuple(f.dynamic for f in known),
                parameters=tuple(f.source if f.learned else None for f in known),
                form=_form(known),
                shares_input=self._first_reader(operands[0], path) if kind in _LINEAR_KINDS else None,
            )
        else:
            known = [self.ledger.get(x) for x in operands]
            site.nonnegative = tuple(a and b.nonnegative for a, b in zip(site.nonnegative, known, strict=False))
            site.dynamic = tuple(a or b.dynamic for a, b in zip(site.dynamic, known, strict=False))
            same = [f.source if f.learned else None for f in known[1:2]] == list(site.parameters[1:2])
            if not same or _form(known) != site.form:
                site.form = PART
        site.calls += 1
        return site

    def _first_reader(self, tensor, path):
        kept, reader = self._readers.get(id(tensor), (None, None))
        if kept is not None and kept() is tensor:
            return reader
        self._readers[id(tensor)] = weakref.ref(tensor), path
        return None

    def foreign(self, site) -> bool:
        """Whether the parameter a site multiplies by is no parameter of its owner, or of a module below it."""
        parameter = self.model.get_parameter(site.parameters[1])
        return all(parameter is not p for p in self.model.get_submodule(site.owner).parameters())

    def result(self) -> Discovery:
        sites = dict(self.sites)
        for site in sites.values():
            if site.form is not None and self.foreign(site):
                site.form = PART
        for path, (parts, biased) in self.attention.items():
            if biased:  # the model's own float softmax stays between the two products
                del sites[path]
                continue
            for part in parts:
                sites[path].macs += sites.pop(part).macs
        never = {}
        readers = {name: site.path for site in sites.values() for name in site.parameters if name}
        for path, module in self.model.named_modules():
            if module_kind(module) is not None and path not in sites:
                names = [f"{path}.{name}" for name, _ in module.named_parameters()]
                reader = next((readers[name] for name in names if name in readers), None)
                if reader is None and not self.ledger.readers.keys().isdisjoint(names):
                    reader = "its owner"
                never[path] = f"its weight is used directly by {reader}" if reader else "it is not called"
        return Discovery(list(sites.values()), self.macs.total, never, self.ledger.readers)


class _Call(Interceptor):
    """One call of one module during discovery."""

    def __init__(self, recorder, module, path, through):
        super().__init__()
        self.recorder, self.module, self.path, self.transparent = recorder, module, path, through
        self.own = _MODULE_FORWARDS.get(type(module).forward)

    def measured(self, func, args, kwargs, reader=""):
        before = self.recorder.macs.total
        known = self.recorder.ledger.known(args, kwargs)
        out = func(*args, **kwargs)
        self.recorder.ledger.follow(known, func, args, kwargs, out, reader)
        return out, self.recorder.macs.total - before

    def plain(self, func, args, kwargs):
        own = self.own and func is self.own[1]
        out, macs = self.measured(func, args, kwargs, self.path if own else "")
        if own:
            self.module_site(args, kwargs, macs)
        elif func is F.embedding:
            self.embedding_site(args, kwargs)
        elif macs:
            self.unknown_site(func, args, kwargs, macs)
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


def _form(known) -> str | None:
    """The form of the parameter that is the second operand."""
    return known[1].form if len(known) > 1 and known[1].learned else None


def _operands(kind, args, kwargs):
    """The tensor operands of a product in the order of the child's signature, without bias and mask."""
    if kind == "einsum":
        return [a for a in tree_iter(args) if isinstance(a, torch.Tensor)]
    names = ("query", "key", "value") if kind == "attention" else ("input", "weight")
    return [*args, *(kwargs[n] for n in names if n in kwargs)][: len(names)]
