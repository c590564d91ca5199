"""Putting children in charge of the products that modules compute functionally."""

from __future__ import annotations

import copy

from torch import nn

from .errors import CaptureError
from .fast_path import leave_fast_path_
from .owner import Capture, OwnerMixin, make_owner_, unmake_owner_
from .parameters import TRANSPOSED, WHOLE
from .run import run
from .sites import Discovery, Site


def wrap_owners_(model: nn.Module, discovery: Discovery, make_child, example_inputs) -> list[Site]:
    """Rewrite every module that issues functional products, in place.

    Args:
        model (nn.Module): the model that `discovery` describes.
        discovery (Discovery): its sites get `traced` and, where they fall back, `reason`.
        make_child (callable): make_child(site) -> nn.Module that computes the product (stored on the owner as
            `site.name`), or None to leave it in float. Its owner may change the result in place, so that the child's
            backward must not need it.
        example_inputs (Tensor | tuple | dict): what the model is called with; the owners are traced on them.

    Returns:
        list[Site]: the sites that were given a child.

    Raises:
        CaptureError: where the model does not run on `example_inputs`.
    """
    leave_fast_path_(model)
    by_owner: dict[str, list[Site]] = {}
    for site in discovery.sites:
        if site.functional:
            by_owner.setdefault(site.owner, []).append(site)
    wrapped = []
    for path, sites in by_owner.items():
        owner = model.get_submodule(path)
        if isinstance(owner, OwnerMixin):
            raise CaptureError(f"{path or type(owner).__name__} is rewritten already")
        children = {site.name: make_child(site) for site in sites}
        given = [site for site in sites if children[site.name] is not None]
        if not given:
            continue
        for site in given:
            owner.add_module(site.name, children[site.name].train(owner.training))
        left = [site.name for site in sites if children[site.name] is None]
        operands = {site.name: _operand(model, site) for site in given if site.form in (WHOLE, TRANSPOSED)}
        make_owner_(owner, Capture({site.name: site.kind for site in given}, left, operands))
        wrapped += given
    _first_run(model, example_inputs)
    for site in wrapped:
        capture = model.get_submodule(site.owner)._capture
        site.traced, site.reason = None if capture.path == "float" else capture.path, capture.reason
    for path in {site.owner for site in wrapped if site.traced is None}:
        unmake_owner_(model.get_submodule(path))
    return [site for site in wrapped if site.traced]


def _first_run(model, example_inputs):
    """Trace every owner; one that does not run with its children (it may count or call them all) stays in float."""
    while True:
        try:
            return run(model, example_inputs)
        except CaptureError as error:
            owner = _failed_owner(error.__cause__)
            if owner is None or owner._capture.path == "float":
                raise
            cause = error.__cause__
            owner._capture.path, owner._capture.reason = "float", f"with children: {type(cause).__name__}: {cause}"
            for name in owner._capture.children:
                del owner._modules[name]


def _failed_owner(error):
    """The innermost owner whose forward an exception came through."""
    owner, trace = None, error.__traceback__ if error is not None else None
    while trace is not None:
        if trace.tb_frame.f_code is OwnerMixin.forward.__code__:
            found = trace.tb_frame.f_locals["self"]
            owner = owner if found._capture.path == "float" else found
        trace = trace.tb_next
    return owner


def _operand(model, site) -> dict:
    """The parameter that is the second operand of a site, by every path it has below the owner."""
    parameter = model.get_parameter(site.parameters[1])
    inside = model.get_submodule(site.owner).named_parameters(remove_duplicate=False)
    return {"form": site.form, "paths": [path for path, found in inside if found is parameter]}


def owners(model: nn.Module) -> dict[str, dict]:
    """The rewritten modules of a model by path, as plain data for a checkpoint.

    Returns:
        dict: path -> {"children": {name: kind}, "left": [name], "operands": {name: {"form": str, "paths": [str]}},
            "path": "fx" | "fall-back", "reason": str | None}.
    """
    return {path: module._capture.record() for path, module in model.named_modules() if isinstance(module, OwnerMixin)}


def restore_owner_(module: nn.Module, record: dict) -> nn.Module:
    """Rewrite one module from its record; its children are in place already, graphs are traced on the first call.

    Args:
        module (nn.Module): a freshly built owner.
        record (dict): its entry in `owners(model)`.

    Raises:
        CaptureError: where a child that the record names is missing.
    """
    missing = [name for name in record["children"] if name not in module._modules]
    if missing:
        raise CaptureError(f"{type(module).__name__} lacks its child {missing[0]}")
    return make_owner_(module, Capture(**copy.deepcopy(record)))


def code(model: nn.Module, path: str) -> str:
    """The rewritten source of one module, one function for each graph it has.

    Raises:
        CaptureError: where the module at `path` is not rewritten.
    """
    module = dict(model.named_modules()).get(path)
    if not isinstance(module, OwnerMixin):
        raise CaptureError(f"{path!r} is not rewritten; rewritten modules: {', '.join(owners(model)) or 'none'}")
    capture = module._capture
    if capture.path != "fx":
        return f"# no graph: {capture.reason}\n"
    graphs = [graph for found in capture.graphs.values() for graph in found]
    graphs = [capture.frozen] if capture.frozen is not None else graphs
    return "\n".join(graph.source.strip() + "\n" for graph in graphs)
