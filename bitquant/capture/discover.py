"""Discovery: one eager run finds every product of a model and the module that issues it."""

from __future__ import annotations

import contextlib
import weakref

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from .attention import transparent
from .call import MODULE_FORWARDS, ModuleCall
from .check import check_model, check_values
from .decompose import decomposition
from .facts import Facts, Ledger
from .macs import MacCounter
from .ordinary import as_ordinary, ordinary
from .parameters import PART
from .run import bind, run
from .sites import Discovery, Site

_LINEAR_KINDS = ("linear", "linear_fn")
_OTHERS = {  # layers that multiply and have no 1-bit counterpart
    nn.Bilinear: "bilinear",
    nn.EmbeddingBag: "embedding_bag",
    nn.RNNBase: "rnn",
    nn.RNNCellBase: "rnn",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
}


def module_kind(module: nn.Module) -> str | None:
    """The kind of site a layer of torch is; None for other modules and for a forward of its own."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    kind, _ = MODULE_FORWARDS.get(type(module).forward, (None, None))
    return kind or next((kind for cls, kind in _OTHERS.items() if isinstance(module, cls)), None)


def discover(model: nn.Module, example_inputs) -> Discovery:
    """Find every linear, convolution, embedding, attention and matrix product of a model.

    Args:
        model (nn.Module): any model; it is run once in eval mode and left as it was.
        example_inputs (Tensor | tuple | dict): what the model is called with.

    Returns:
        Discovery: the products in call order, with multiply-accumulates counted independently at ATen level.

    Raises:
        CaptureError: where `example_inputs` are missing, the model does not run on them, or it is no Python module or
            rewritten already.
    """
    check_model(model)
    example_inputs = ordinary(example_inputs)
    args, kwargs = bind(example_inputs)
    given = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not any(tensor.is_meta for tensor in given):
        check_values(model)
    with as_ordinary(model):
        recorder = _Recorder(model)
        for tensor in given:
            recorder.ledger.put(tensor, Facts(dynamic=True))
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
        self.stack: list[ModuleCall] = []
        self._readers: dict[int, tuple] = {}  # id of an input tensor -> (weak reference, path of its first reader)

    @contextlib.contextmanager
    def watching(self):
        paths = {module: path for path, module in self.model.named_modules()}
        through = {module for module in paths if transparent(module)}

        def enter(module, args):
            self.stack.append(ModuleCall(self, module, paths[module], module in through))

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
        ran = {site.path if site.traced == "module" else site.owner for site in sites.values() if not site.functional}
        for path, module in self.model.named_modules():
            if module_kind(module) is not None and path not in ran:
                names = [f"{path}.{name}" for name, _ in module.named_parameters()]
                reader = next((readers[name] for name in names if name in readers), None)
                if reader is None and not self.ledger.readers.keys().isdisjoint(names):
                    reader = "its owner"
                never[path] = f"its weight is used directly by {reader}" if reader else "it is not called"
        return Discovery(list(sites.values()), self.macs.total, never, self.ledger.readers)


def _form(known) -> str | None:
    """The form of the parameter that is the second operand."""
    return known[1].form if len(known) > 1 and known[1].learned else None
