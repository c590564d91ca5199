"""What was rewritten in a model, as JSON, and the skeleton rebuilt from it, so that a checkpoint finds its modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitquant.activations import set_relu_, smooth_activations
from bitquant.capture import mutate_class_, owners, restore_owner_
from bitquant.capture.fast_path import leave_fast_path_
from bitquant.config import QuantConfig
from bitquant.fields import shown
from bitquant.nn import BitAttention, BitConv, BitEinsum, BitEmbedding, BitFunctionalLinear, BitLinear, BitMatmul
from bitquant.packed.attention import PackedAttention
from bitquant.packed.cast import guard_casts_
from bitquant.packed.conv import PackedConv
from bitquant.packed.embedding import PackedEmbedding
from bitquant.packed.functional import PackedFunctionalLinear, drop_parameters_
from bitquant.packed.linear import PackedLinear
from bitquant.packed.specification import FLOAT, check_fit, check_parameter
from bitquant.record import Record, present_record

# by how a module is put back: in place, as a child of its owner, or in the place of a float layer
MUTATED = {cls.__name__: cls for cls in (BitLinear, BitConv, BitEmbedding)}
TRAINED_CHILDREN = {cls.__name__: cls for cls in (BitAttention, BitFunctionalLinear, BitMatmul, BitEinsum)}
PACKED_CHILDREN = {cls.__name__: cls for cls in (PackedAttention, PackedFunctionalLinear)}
REPLACED = {cls.__name__: cls for cls in (PackedLinear, PackedConv, PackedEmbedding)}
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
Places = dict[nn.Module, list[tuple[nn.Module, str]]]
KINDS = {**MUTATED, **TRAINED_CHILDREN, **PACKED_CHILDREN, **REPLACED}


def structure(model: nn.Module) -> dict[str, Any]:
    """JSON-able description of every rewritten module and owner of a student or a packed model.

    Raises:
        ValueError: the model was never quantized.
    """
    modules = {}
    for path, module in model.named_modules():
        if (kind := _kind(module)) is not None:
            modules[path] = {"type": kind, **module.spec()}
    return {"record": present_record(model).to_dict(), "modules": modules, "owners": owners(model)}


def _kind(module: nn.Module) -> str | None:
    """The name of a rewritten module's type; mutated classes are named after the class they were mixed into."""
    own = type(module).__name__
    return (
        own if KINDS.get(own) is type(module) else next((k for k, c in MUTATED.items() if isinstance(module, c)), None)
    )


def restore_(model: nn.Module, structure: dict[str, Any]) -> None:
    """Rewrite a freshly built float model, in place, as ``structure`` says; its state_dict can then be loaded.

    Args:
        model: of the class the structure was taken from, on any device (new tensors are made where the module they
            replace is, so a model on the meta device stays there).
        structure: as ``bitquant.metadata.check_metadata`` passed it.

    Raises:
        ValueError: the model has no such module or parameter, or one of another size.
    """
    record = Record.from_dict(structure["record"])
    check_structure(model, structure)
    set_relu_(model, record.relu)
    packed = _packed_parameters(model, structure["modules"])
    places = _places(model)
    for path, spec in structure["modules"].items():
        _restore_module(model, path, dict(spec), record.config_of(path), places)
    drop_parameters_(model, packed)
    for path, owner in structure["owners"].items():
        restore_owner_(_submodule(model, path), owner)
    leave_fast_path_(model)
    guard_casts_(model)
    model._bitquant = record


def check_structure(model: nn.Module, structure: dict[str, Any]) -> None:
    """ValueError unless every name in a structure is one of the float ``model``, and of what it is taken for."""
    found = dict(model.named_modules(remove_duplicate=False))
    for path in structure["record"]["blocks"]:
        _known(found, path)
    smooth = smooth_activations(model, structure["record"]["blocks"])
    for path in structure["record"]["relu"]:
        if path not in smooth:
            raise ValueError(f"{shown(path)} is no smooth activation function in a layer of the model")
    for path, owner in structure["owners"].items():
        parameters = {name for name, _ in _known(found, path).named_parameters(remove_duplicate=False)}
        for operand in owner["operands"].values():
            if not parameters.issuperset(operand["paths"]):
                raise ValueError(f"an operand of {shown(path)} is no parameter of that module")
    for path, spec in structure["modules"].items():
        kind, place = spec["type"], shown(path)
        if kind in FLOAT:
            check_fit(kind, spec, _known(found, path), place)
        elif path in found:
            raise ValueError(f"the model has a module {place} of its own")
        elif "parameter" in spec:
            check_parameter(kind, spec, _known(found, path.rpartition(".")[0]), place)


def _known(found: dict[str, nn.Module], path: str) -> nn.Module:
    if path not in found:
        raise ValueError(f"the model has no module {shown(path)}")
    return found[path]


def _packed_parameters(model: nn.Module, modules: dict[str, Any]) -> list[nn.Parameter]:
    """The parameters of a float model that exist only as bits, under whatever names; looked up before the layers that
    hold them are replaced."""
    held: dict[str, nn.Parameter] = {}
    for path, spec in modules.items():
        if "parameter" in spec:
            held[path] = _submodule(model, path.rpartition(".")[0]).get_parameter(spec["parameter"])
        elif spec["type"] in (*MUTATED, *REPLACED):
            held[path] = _submodule(model, path)._parameters.get("weight")
    packed = {path for path in held if modules[path]["type"] in (*PACKED_CHILDREN, *REPLACED)}
    kept = {id(parameter) for path, parameter in held.items() if path not in packed}
    return [held[path] for path in packed if id(held[path]) not in kept]


def _restore_module(model: nn.Module, path: str, spec: dict[str, Any], config: QuantConfig, places: Places) -> None:
    kind = spec.pop("type")
    parent, _, name = path.rpartition(".")
    if kind in TRAINED_CHILDREN or kind in PACKED_CHILDREN:
        owner = _submodule(model, parent)
        arguments = (config,) if kind in TRAINED_CHILDREN else ()
        owner.add_module(name, KINDS[kind](*arguments, **spec, device=_device(owner)))
    elif kind in MUTATED:
        module = _submodule(model, path)
        mutate_class_(module, KINDS[kind])
        module.add_quantizers(config, **spec)
    else:
        module = _submodule(model, path)
        _replace(places, module, KINDS[kind](**spec, device=_device(module)))


def replace_everywhere_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered (a shared module has several parents), with the hooks users set."""
    _replace(_places(model), old, new)


def _replace(places: Places, old: nn.Module, new: nn.Module) -> None:
    for hooks in HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    for parent, name in places.get(old, ()):
        parent._modules[name] = new


def _places(model: nn.Module) -> Places:
    """Each module below a model, and the parents and names it is registered with."""
    places: Places = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(child, []).append((parent, name))
    return places


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the model has no module {path!r}") from None


def _device(module: nn.Module) -> torch.device | None:
    return next((p.device for p in module.parameters()), None)
