"""``profile``: parameters, storage, operations and estimated time of a model, layer by layer and in all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from bitquant.config import ConfigLike, QuantConfig
from bitquant.profiling.calls import quantized_kind
from bitquant.profiling.convention import CONVENTIONS, Convention, Count
from bitquant.profiling.device import DEVICES, Device
from bitquant.profiling.table import ADDITIVE, OUTSIDE, Profile, ProfiledLayer
from bitquant.profiling.work import Work, work_of
from bitquant.record import is_quantized

TEBI = 2.0**40


def profile(model: nn.Module, example_inputs: Any, *, weight_bits: int | None = None,
            activation_bits: int | None = None, config: ConfigLike = None,
            convention: Convention | str = "consistent", device: Device | str = "a100",
            not_stored: Sequence[str] = ()) -> Profile:
    """What ``model`` costs to store and to run once on ``example_inputs``.

    A float model is profiled as it is, or, with both widths given, as if ``config`` had quantized it (its own widths
    do not count, those of its tables and its float paths do); a student or a packed model at the widths it has.

    Args:
        model: run once in eval mode, left as it was.
        example_inputs: as for ``quantize_``; their length decides all operation counts.
        weight_bits, activation_bits: widths from 1 to 32 of what would be quantized, both or neither.
        config: decides which layers that is; as ``quantize_`` takes it.
        convention: how costs are counted, by name (``"consistent"``, ``"paper"``) or your own.
        device: peak rates for the estimated time, by name (``"a100"``, ``"h100"``) or your own.
        not_stored: parameters that do not count as stored: regular expressions of their full names.

    Raises:
        ValueError: unknown names, one width without the other, or widths for a model that is quantized already.
        CaptureError: the model does not run on ``example_inputs``.
    """
    convention, device = _named(convention, CONVENTIONS, "convention"), _named(device, DEVICES, "device")
    config = QuantConfig.of(config)
    quantized = is_quantized(model)
    bits = _widths(weight_bits, activation_bits, quantized)
    works = work_of(model, example_inputs, config=config, bits=bits)
    rows = _storage(model, works, convention, not_stored)
    counted = _Counter(convention, device, works)
    for work in works:
        counted.add(rows, work)
    layers = [row for row in rows.values() if any(getattr(row, name) for name in ADDITIVE)]
    return Profile(layers, convention, device)


def _named(value, known, what):
    if not isinstance(value, str):
        return value
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    return known[value]


def _widths(weight_bits: int | None, activation_bits: int | None, quantized: bool) -> tuple[int, int] | None:
    if weight_bits is None and activation_bits is None:
        return None
    if quantized:
        raise ValueError("this model is quantized: it is profiled at its own widths")
    if weight_bits is None or activation_bits is None:
        raise ValueError("give both weight_bits and activation_bits, or neither")
    for width in (weight_bits, activation_bits):
        if not 1 <= width <= 32:
            raise ValueError(f"a width must be between 1 and 32 bits; got {width}")
    return weight_bits, activation_bits


# storage


def _storage(model: nn.Module, works: list[Work], convention: Convention,
             not_stored: Sequence[str]) -> dict[str, ProfiledLayer]:
    """One row for each module that holds parameters, in the model's order, and for what a quantized block adds."""
    weighted, by_weight = {work.path: work for work in works}, {work.weight: work for work in works}
    rows: dict[str, ProfiledLayer] = {}
    packed = _packed(model)
    for path, module in packed.items():
        work = weighted.get(path)
        row = rows[path] = _row(path, work, type(module).__name__)
        for name, tensor in module.state_dict().items():
            row.storage_bytes += tensor.nbytes
            row.parameters += (module.weight if name == "weight_packed" else tensor).numel()
    for name, parameter in model.named_parameters():
        if any(re.fullmatch(pattern, name) for pattern in not_stored) or any(name.startswith(p + ".") for p in packed):
            continue
        path = re.sub(r"\.(parametrizations\..*|[^.]*)$", "", name)  # of its module; the model's own keep their name
        work = weighted.get(path)
        kind = "parameter" if path == name else type(model.get_submodule(path)).__name__
        row = rows.setdefault(path, _row(path, work, kind))
        user = by_weight.get(name)
        row.parameters += parameter.numel()
        row.storage_bytes += parameter.numel() * (_bytes(user, convention) if user else convention.float_bytes)
    for work in works:
        if work.added:
            row = rows.setdefault(work.path, _row(work.path, work, work.kind))
            row.parameters += work.added
            row.storage_bytes += 2 * work.added
        extra = convention.vectors.get(work.family, 0) if work.component == "pairs" and work.quantized else 0
        if extra and not packed:
            path = f"{work.block}.quantizers" if work.block else "quantizers"
            row = rows.setdefault(path, ProfiledLayer(path, "quantizers", "quantizers"))
            row.parameters += extra * work.width
            row.storage_bytes += extra * work.width * convention.float_bytes
    return rows


def _packed(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if (quantized_kind(m) or "").startswith("Packed")}


def _bytes(work: Work, convention: Convention) -> float:
    return work.weight_bits / 8 if work.weight_bits < 16 else convention.float_bytes * work.weight_bits / 32


def _row(path: str, work: Work | None, kind: str) -> ProfiledLayer:
    if work is None:
        return ProfiledLayer(path, kind, "other")
    component = work.component if work.block else OUTSIDE
    return ProfiledLayer(path, work.kind, component, weight_bits=work.weight_bits, activation_bits=work.activation_bits)


# operations


class _Counter:
    """Operations and time of products under a convention."""

    def __init__(self, convention: Convention, device: Device, works: list[Work]):
        self.convention, self.device = convention, device
        self.quantized = any(work.quantized for work in works)
        self.queries = max((work.queries for work in works), default=0)

    def add(self, rows: dict[str, ProfiledLayer], work: Work) -> None:
        row = rows.setdefault(work.path, _row(work.path, work, work.kind))
        macs, convention = self.macs(work), self.convention
        count = convention.counts.get((work.family, work.component), Count())
        float_macs = macs * self.float_share(count, work)
        quantized_macs = macs * count.quantized if work.quantized else 0
        bop_count = convention.bop_counts.get((work.family, work.component), count)
        row.macs += float_macs
        row.quantized_macs += quantized_macs
        row.flops += 2 * float_macs + (self.elementwise(work) if work.quantized else 0)
        bop_macs = macs * self.float_share(bop_count, work)
        weight_bits = work.activation_bits if work.component == "product" else work.weight_bits
        if convention.bops == "mac32":
            row.bops += 32 * bop_macs
            row.quantized_bops += 2 * quantized_macs
        else:
            row.bops += 32 * 32 * bop_macs
            row.quantized_bops += weight_bits * work.activation_bits * quantized_macs
        row.seconds = self.seconds(row, max(weight_bits, work.activation_bits))

    def macs(self, work: Work) -> float:
        """Of one product, or pairs of a softmax."""
        macs = work.macs * (work.density if self.convention.attention == "ideal" else 1.0)
        if work.component == "pairs" and not self.convention.softmax_reduced:
            macs *= (self.queries / work.queries) ** 2
        return macs

    def float_share(self, count: Count, work: Work) -> float:
        return count.rest if work.quantized else count.whole

    def elementwise(self, work: Work) -> float:
        """Operations beside the products of a quantized block."""
        frame, unit = self.convention.elementwise.get(work.family, (0.0, 0.0))
        return frame * work.frames * work.width + unit * work.units

    def seconds(self, row: ProfiledLayer, bits: int) -> float:
        if self.convention.fp16_peak:
            unit = TEBI / 1e12
            return row.bops / (self.device.rate(16) * unit) + row.quantized_bops / (self.device.rate(bits) * unit)
        return row.flops / self.device.rate(32) + 2 * row.quantized_macs / self.device.rate(bits)
