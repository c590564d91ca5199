"""What was rewritten in a model, as JSON, and the skeleton rebuilt from it, so that a checkpoint finds its modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitquant.activations import set_relu_
from bitquant.capture import mutate_class_, owners, restore_owner_
from bitquant.config import QuantConfig
from bitquant.nn import BitAttention, BitConv, BitEinsum, BitEmbedding, BitFunctionalLinear, BitLinear, BitMatmul
from bitquant.packed.attention import PackedAttention
from bitquant.packed.conv import PackedConv
from bitquant.packed.embedding import PackedEmbedding
from bitquant.packed.functional import PackedFunctionalLinear, drop_parameters_
from bitquant.packed.linear import PackedLinear
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

    Raises:
        ValueError: a module type that is unknown, or a path the model does not have.
    """
    record = Record.from_dict(structure["record"])
    set_relu_(model, record.relu)
    packed = _packed_parameters(model, structure["modules"])
    for path, spec in structure["modules"].items():
        _restore_module(model, path, dict(spec), record.config)
    drop_parameters_(model, packed)
    for path, owner in structure["owners"].items():
        restore_owner_(_submodule(model, path), owner)
    model._bitquant = record


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


def _restore_module(model: nn.Module, path: str, spec: dict[str, Any], config: QuantConfig) -> None:
    kind = spec.pop("type", None)
    if kind not in KINDS:
        raise ValueError(f"unknown module type {kind!r} at {path!r}; known: {', '.join(KINDS)}")
    config = config.for_module(path) or config
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
        replace_everywhere_(model, module, KINDS[kind](**spec, device=_device(module)))


def replace_everywhere_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered (a shared module has several parents), with the hooks users set."""
    for hooks in HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"the model has no module {path!r}") from None


def _device(module: nn.Module) -> torch.device | None:
    return next((p.device for p in module.parameters()), None)
