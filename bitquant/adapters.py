"""Adapters, as of LoRA: small layers beside a float one, which belong into its weight before that becomes bits."""

from __future__ import annotations

from torch import nn

from bitquant.config import QuantConfig


def unmerged_adapters(model: nn.Module) -> list[str]:
    """Paths of the modules that hold a layer and adapters beside it, not merged into its weight: those of the peft
    package, and those whose parameters are named as LoRA's are everywhere, ``lora_A`` and its kind."""
    return [path for path, module in model.named_modules() if _holds(module) and not getattr(module, "merged", False)]


def _holds(module: nn.Module) -> bool:
    if "base_layer" in module._modules:  # peft: each kind of adapter names where its parameters are
        return bool(getattr(module, "adapter_layer_names", ()))
    return any(name.lower().startswith("lora_") for name in (*module._parameters, *module._modules))


def refuse_adapters(model: nn.Module, config: QuantConfig) -> None:
    """Raise ValueError where a configuration would quantize layers with adapters that are not merged."""
    if found := [path for path in unmerged_adapters(model) if config.for_module(path) is not None]:
        raise ValueError(
            f"{found[0] or 'the model'} holds an adapter (LoRA) beside its layer: merge it into the weight first, as "
            "model.merge_and_unload() of peft does"
        )
