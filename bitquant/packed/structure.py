"""What was rewritten in a model, as JSON, and the skeleton rebuilt from it, so that a checkpoint finds its modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitquant.activations import set_relu_
from bitquant.capture import mutate_class_, owners, restore_owner_
from bitquant.config import QuantConfig
from bitquant.nn import BitAttention, BitConv, BitEinsum, BitEmbedding, BitFunctionalLinear, BitLinear, BitMatmul
from bitquant.nn.fast_path import leave_fast_path_
from bitquant.packed.attention import PackedAttention
from bitquant.packed.cast import guard_casts_
from bitquant.packed.conv import PackedConv
from bitquant.packed.embedding import PackedEmbedding
from bitquant.packed.functional import PackedFunctionalLinear, drop_parameters_
from bitquant.packed.linear import PackedLinear
from bitquant.record import Record, record_of

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
    return {"record": record_of(model).to_dict(), "modules": modules, "owners": owners(model)}


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
    packed = [  # looked up before the layers they may be shared with are replaced
        _submodule(model, path.rpartition(".")[0]).get_parameter(spec["parameter"])
        for path, spec in structure["modules"].items()
        if spec["type"] == PackedFunctionalLinear.__name__
    ]
    for path, spec in structure["modules"].items():
        _restore_module(model, path, dict(spec), record.config)
    drop_parameters_(model, packed)
    for path, owner in structure["owners"].items():
        restore_owner_(_submodule(model, path), owner)
    leave_fast_path_(model)
    guard_casts_(model)
    model._bitquant = record


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
