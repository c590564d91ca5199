"""``quantize_``: a trained float model becomes a trainable 1-bit student, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.activations import replace_by_relu_
from bitquant.capture import CaptureError, Discovery, Site, Snapshot, discover, mutate_class_, wrap_owners_
from bitquant.config import QuantConfig
from bitquant.coverage import Record, Row
from bitquant.inputs import padding_mask, run
from bitquant.nn import BitAttention, BitConv, BitEinsum, BitEmbedding, BitFunctionalLinear, BitLinear, BitMatmul
from bitquant.plan import UNSUPPORTED, Plan
from bitquant.quantizers import ActivationQuantizer


def quantize_(
    model: nn.Module, config: QuantConfig | str | Mapping[str, Any] | None = None, example_inputs: Any = None
) -> None:
    """Swap the linear, embedding and attention products of a trained encoder for trainable 1-bit ones, in place.

    Parameters keep their names, so the float state_dict still loads; new keys hold the quantizers. The scales are
    calibrated on ``example_inputs``; call ``calibrate_`` for more data.

    Args:
        model: any module that runs on ``example_inputs``.
        config: a ``QuantConfig``, a preset name, or a configuration as a dictionary; default ``bit-plus``.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        ValueError: no or unusable example inputs, an unknown preset or field, a rule that matches nothing, or a
            model that is quantized already.
    """
    config = _resolve(config)
    if isinstance(getattr(model, "_bitquant", None), Record):
        raise ValueError("this model is quantized already; start from the float model")
    discovery = discover(model, example_inputs)
    before, replaced = Snapshot(model), []
    try:
        if config.relu:
            config.check_rules({name for name, _ in model.named_modules() if name})
            replaced = replace_by_relu_(model, discovery, config)
            discovery = discover(model, example_inputs)
        rows, blocks = _swap_(model, discovery, config, example_inputs)
        model._bitquant = Record(config, rows, discovery.total_macs, blocks, replaced)
        calibrate_(model, [example_inputs])
    except BaseException:
        before.restore()
        raise


def _swap_(
    model: nn.Module, discovery: Discovery, config: QuantConfig, example_inputs: Any
) -> tuple[list[Row], list[str]]:
    """Swap every product that the plan binarizes; the rows of the report, and the blocks of the plan."""
    plan, before = Plan(model, discovery, config), Snapshot(model)
    decided: dict[str, tuple[QuantConfig | None, str | None]] = {}

    def make_child(site: Site) -> nn.Module | None:
        chosen, reason = plan.decide(site)
        child = _quantized_product(model, site, chosen) if chosen else None
        decided[site.path] = (chosen, reason if child is not None else reason or UNSUPPORTED)
        return child

    for site in discovery.sites:
        if site.traced == "module":
            chosen, reason = plan.decide(site)
            layer = model.get_submodule(site.path)
            decided[site.path] = (chosen, _quantize_layer(layer, site, chosen) if chosen else reason)
    wrapped = wrap_owners_(model, discovery, make_child, example_inputs)
    rows = [_row(site, *decided.get(site.path, (None, site.reason))) for site in discovery.sites]
    refused = {row.path: row.reason for row in rows if row.reason}
    if all(users.isdisjoint(refused) or users <= refused.keys() | {""} for users in discovery.readers.values()):
        return rows, plan.blocks
    # a user of a shared parameter turned out to have no 1-bit form: plan again without it
    before.restore()
    for site in wrapped:
        site.traced = site.reason = None
    for site in discovery.sites:
        if site.path in refused and decided.get(site.path, (None,))[0] is not None:
            site.traced, site.reason = None, refused[site.path]
    return _swap_(model, discovery, config, example_inputs)


def _row(site: Site, config: QuantConfig | None, reason: str | None) -> Row:
    if site.traced is None:  # never rewritten, or taken back because the rewritten module differed
        reason = reason or site.reason or UNSUPPORTED
    return Row.of(site, config, reason)


def _resolve(config) -> QuantConfig:
    if config is None:
        return QuantConfig.preset("bit-plus")
    if isinstance(config, QuantConfig):
        return config
    return QuantConfig.preset(config) if isinstance(config, str) else QuantConfig.from_dict(dict(config))


def _quantize_layer(module: nn.Module, site: Site, config: QuantConfig) -> str | None:
    """Mutate one layer; returns why not when this use of it has no 1-bit form."""
    mixins = {"linear": (nn.Linear, BitLinear), "conv1d": (nn.Conv1d, BitConv), "conv2d": (nn.Conv2d, BitConv)}
    if site.kind in mixins and isinstance(module, mixins[site.kind][0]):
        mutate_class_(module, mixins[site.kind][1])
        module.add_quantizers(config, nonnegative=site.nonnegative[0])
        return None
    if site.kind == "embedding" and isinstance(module, nn.Embedding) and module.max_norm is None:
        mutate_class_(module, BitEmbedding)
        module.add_quantizers(config)
        return None
    return UNSUPPORTED


def _quantized_product(model: nn.Module, site: Site, config: QuantConfig) -> nn.Module | None:
    """The trainable child for one product of two activations; None when there is no quantized form."""
    device = next((p.device for p in model.parameters()), None)
    if site.kind == "attention":
        return BitAttention(config, site.shapes[0][-1], score_bias=site.score_bias, device=device)
    if site.by_parameter:
        return _functional_linear(model, site, config, device) if site.by_matrix else None
    if site.kind == "matmul":
        sides = tuple(site.nonnegative[:2])
        return BitMatmul(config, nonnegative=sides, probability=site.role == "pv" and sides[0], device=device)
    if site.kind == "einsum" and len(site.shapes) == 2:
        return BitEinsum(config, nonnegative=tuple(site.nonnegative[:2]), device=device)
    return None


def _functional_linear(model: nn.Module, site: Site, config: QuantConfig, device) -> nn.Module:
    """For a product with a whole matrix parameter of the owner."""
    parameter, owner = model.get_parameter(site.parameters[1]), model.get_submodule(site.owner)
    matmul = site.kind == "matmul"
    return BitFunctionalLinear(
        config,
        shape=site.shapes[1][::-1] if matmul else site.shapes[1],
        parameter=next(name for name, p in owner.named_parameters() if p is parameter),
        transposed=matmul != (site.form == "transposed"),
        matmul=matmul,
        nonnegative=site.nonnegative[0],
        device=device,
    )


@torch.no_grad()
def calibrate_(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the scale of every activation binarizer from data, in place: one forward a batch, running means.

    Args:
        batches: inputs as for ``example_inputs``. In a dict, a 0/1 ``attention_mask`` (batch, time) or (batch, samples)
            keeps padding out of the statistics.

    Raises:
        ValueError: there are no batches.
    """
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    training = {m: m.training for m in model.modules()}
    model.eval()
    batch = None
    try:
        for batch in batches:
            with _observing(quantizers, padding_mask(batch)):
                run(model, batch)
    finally:
        for module, mode in training.items():
            module.training = mode
    if batch is None:
        raise ValueError("there is nothing to calibrate on: batches is empty (give a list, not a spent iterator)")


@contextmanager
def _observing(quantizers: list[ActivationQuantizer], valid: Tensor | None):
    for quantizer in quantizers:
        quantizer.observing, quantizer.valid = True, valid
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.observing, quantizer.valid = False, None


__all__ = ["CaptureError", "calibrate_", "quantize_"]
