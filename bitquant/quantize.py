"""``quantize_``: a trained float model becomes a trainable 1-bit student, in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.activations import replace_by_relu_
from bitquant.adapters import refuse_adapters
from bitquant.caches import caches_dropped, drop_caches_
from bitquant.capture import (
    CaptureError,
    Discovery,
    Site,
    Snapshot,
    check_model,
    check_values,
    discover,
    ordinary_,
    wrap_owners_,
)
from bitquant.config import ConfigLike, QuantConfig
from bitquant.coverage import Report
from bitquant.forms import quantize_layer_, quantized_product
from bitquant.inputs import check_not_empty, padding_mask, run
from bitquant.memory_layout import align_
from bitquant.nn.low_rank import LowRank
from bitquant.plan import Plan
from bitquant.quantizers import ActivationQuantizer
from bitquant.record import Record, is_quantized
from bitquant.widths import in_float


@torch.inference_mode(False)
def quantize_(model: nn.Module, config: ConfigLike = None, example_inputs: Any = None) -> None:
    """Swap the linear, embedding and attention products of a trained encoder for trainable 1-bit ones, in place.

    Parameters keep their names, so the float state_dict still loads; new keys hold the quantizers. The scales are
    calibrated on ``example_inputs``; call ``calibrate_`` for more data.

    Args:
        model: any module that runs on ``example_inputs``.
        config: a ``QuantConfig``, a preset name, or a configuration as a dictionary; default ``bit-plus``.
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        ValueError: no or unusable example inputs, an unknown preset or field, a rule that matches nothing, a model
            that is quantized already, compiled, exported or without weights, or adapters that are not merged.
        UserWarning: little of the model can be quantized.
    """
    config = QuantConfig.of(config)
    if is_quantized(model):
        raise ValueError("this model is quantized already; start from the float model")
    check_model(model)
    check_values(model)
    check_not_empty(example_inputs)
    refuse_adapters(model, config)
    drop_caches_(model)  # a graph would take what a cache holds for a constant
    before, replaced = Snapshot(model), []
    try:
        ordinary_(model)
        align_(model)
        discovery = discover(model, example_inputs)
        if config.relu:
            replaced = replace_by_relu_(model, Plan(model, discovery, config).blocks)
            discovery = discover(model, example_inputs)
        plan = _swap_(model, discovery, config, example_inputs)
        beside = plan.rows_beside()
        total_macs = discovery.total_macs + sum(row.macs for row in beside)
        model._bitquant = record = Record(config, plan.rows() + beside, total_macs, plan.blocks, replaced)
        calibrate_(model, [example_inputs])
    except BaseException:
        before.restore()
        raise
    if (warning := Report(record.rows, total_macs).warning) is not None:
        warnings.warn(warning, stacklevel=3)  # of the caller, past the decorator


def _swap_(model: nn.Module, discovery: Discovery, config: QuantConfig, example_inputs: Any) -> Plan:
    """Swap every product that the plan binarizes; returns the plan that could be carried out."""
    plan, before = Plan(model, discovery, config), Snapshot(model)

    def make_child(site: Site) -> nn.Module | None:
        chosen = plan.decide(site).config
        return quantized_product(model, site, chosen) if chosen else None

    for site in discovery.sites:
        if site.traced == "module" and (chosen := plan.decide(site).config):
            quantize_layer_(model.get_submodule(site.path), site, chosen)
    wrapped = wrap_owners_(model, discovery, make_child, example_inputs)
    refused = {site.path for site in discovery.sites if plan.decide(site).config is None}
    if all(users.isdisjoint(refused) or users <= refused | {""} for users in discovery.readers.values()):
        return plan
    # a user of a shared parameter could not be rewritten: plan again without it
    before.restore()
    for site in wrapped:
        site.traced = site.reason = None
    return _swap_(model, discovery, config, example_inputs)


@torch.inference_mode(False)
@torch.no_grad()
def calibrate_(model: nn.Module, batches: Iterable[Any], *, low_rank: bool = True) -> None:
    """Set the scale of every activation binarizer from data, in place: one forward a batch, running means. Where there
    are float paths (``QuantConfig.low_rank``), they start again first, from the directions that hold most of all data
    so far, by one forward a batch with all products in float; the scales beside them are of the new data alone.

    Args:
        batches: inputs as for ``example_inputs``. In a dict, a 0/1 ``attention_mask`` (batch, time) or (batch, samples)
            keeps padding out of the statistics.
        low_rank: False leaves those paths as they are, for a student that was trained already.

    Raises:
        ValueError: there are no batches, or numbers that are not finite where there are float paths.
    """
    paths = [module for module in model.modules() if isinstance(module, LowRank) and not module.packed]
    if low_rank and paths:
        batches = list(batches)
        # before training, what 1-bit layers hand on says little of what they will
        with in_float(model):
            _observe_(model, batches, paths)
        for module in model.modules():
            if getattr(module, "float_path", None) in paths:
                module.input_quantizer.forget()  # what other paths left of its input
    _observe_(model, batches, [module for module in model.modules() if isinstance(module, ActivationQuantizer)])


def _observe_(model: nn.Module, batches: Iterable[Any], observers: list[ActivationQuantizer | LowRank]) -> None:
    """Run a model on batches, in eval mode, while some of its modules look at what they are given."""
    training = {m: m.training for m in model.modules()}
    model.eval()
    batch = None
    try:
        with caches_dropped(model):  # what is computed while scales change is old afterwards
            for batch in batches:
                with _observing(observers, padding_mask(batch)):
                    run(model, batch)
    finally:
        for module, mode in training.items():
            module.training = mode
    if batch is None:
        raise ValueError("there is nothing to calibrate on: batches is empty (give a list, not a spent iterator)")


@contextmanager
def _observing(observers: list[ActivationQuantizer | LowRank], valid: Tensor | None):
    for observer in observers:
        observer.observing, observer.valid = True, valid
    try:
        yield
    finally:
        for observer in observers:
            observer.observing, observer.valid = False, None


__all__ = ["CaptureError", "calibrate_", "quantize_"]
