"""``report``: every contraction of a model, binarized or left in float with a reason (contract 6)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tabulate import tabulate
from torch import nn

from bitquant.capture import discover, owners
from bitquant.capture.sites import UNCOUNTED
from bitquant.config import ConfigLike, QuantConfig
from bitquant.packed.structure import KINDS, PACKED_CHILDREN, REPLACED
from bitquant.plan import BESIDE, CHANGED, DIFFERS, Plan
from bitquant.record import Record, Row, is_quantized, present_record, record_of

LITTLE = 0.2  # a model of which less is quantized is warned of


def is_packed(model: nn.Module) -> bool:
    """Whether ``convert_`` packed layers of a model."""
    kinds = (*PACKED_CHILDREN.values(), *REPLACED.values())
    return any(isinstance(module, kinds) for module in model.modules())


def require_student(model: nn.Module) -> Record:
    """The record of a model that can still be trained. ValueError when it is float or packed."""
    record = record_of(model)
    if is_packed(model):
        raise ValueError("this model is packed: its weights are bits and cannot change; use the student it came from")
    return record


@dataclass
class Report:
    """Rows and totals; ``str()`` draws a table, ``to_dict()`` is JSON-able."""

    rows: list[Row]
    total_macs: int

    @property
    def seen_macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def share_seen(self) -> float:
        """Share of the multiply-accumulates, counted independently, that a row accounts for."""
        return self.seen_macs / self.total_macs if self.total_macs else 1.0

    @property
    def share_binarized(self) -> float:
        """Share of all multiply-accumulates that run on 1-bit operands."""
        binarized = sum(row.macs for row in self.rows if row.binarized)
        return binarized / self.total_macs if self.total_macs else 0.0

    @property
    def share_quantized(self) -> float:
        """Share of all multiply-accumulates that run on quantized operands, of any width."""
        quantized = sum(row.macs for row in self.rows if row.reason is None)
        return quantized / self.total_macs if self.total_macs else 1.0

    @property
    def warning(self) -> str | None:
        """One sentence where little of the model is quantized: what most of it is, and why that stays float."""
        if self.share_quantized >= LITTLE:
            return None
        said = f"only {self.share_quantized:.2%} of the multiply-accumulates are quantized"
        if not self.left_in_float:
            return said
        most = max(self.left_in_float, key=lambda row: row.macs)
        why = f"{most.reason}: {most.note}" if most.note else most.reason
        return f"{said}; {most.path} alone has {most.macs / self.total_macs:.0%} ({why})"

    @property
    def left_in_float(self) -> list[Row]:
        """Contractions, without the float paths beside 1-bit layers."""
        return [row for row in self.rows if row.reason not in (None, BESIDE)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(row) for row in self.rows],
            "total_macs": self.total_macs,
            "share_seen": self.share_seen,
            "share_binarized": self.share_binarized,
            "warning": self.warning,
        }

    def __str__(self) -> str:
        lines = [
            [
                row.path,
                row.kind,
                row.role,
                row.macs,
                f"{row.weight_bits or '-'}/{row.activation_bits}",
                row.traced,
                row.reason or ("binarized" if row.binarized else "quantized"),
                row.note,
            ]
            for row in self.rows
        ]
        table = tabulate(lines, headers=["layer", "kind", "role", "MACs", "W/A bits", "reached by", "result", "note"])
        uncounted = sum(row.note == UNCOUNTED for row in self.rows)
        seen = f"{self.share_seen:.1%} seen" + (f" but for {uncounted} that cannot be counted" if uncounted else "")
        totals = (
            f"{self.total_macs:,} MACs: {seen}, {self.share_binarized:.1%} binarized, "
            f"{len(self.left_in_float)} of {sum(row.reason != BESIDE for row in self.rows)} contractions left in float"
        )
        return "\n".join(filter(None, (table, totals, self.warning)))


def report(model: nn.Module, example_inputs: Any = None, config: ConfigLike = None) -> Report:
    """Every contraction of ``model`` (float, student or packed).

    Args:
        example_inputs: needed for a float model, which is run once; the rows then say what ``quantize_`` would do.
        config: that it would do it with, as ``quantize_`` takes it.

    Raises:
        ValueError: a float model without usable example inputs, or a configuration for one that is quantized.
    """
    if is_quantized(model):
        if config is not None:
            raise ValueError("this model is quantized: its report is of the configuration it was quantized with")
        record = present_record(model)
        rows = _as_they_run(model, record.rows)
        gone = sum(row.macs for row in record.rows) - sum(row.macs for row in rows)  # float paths that no longer run
        return Report(rows, record.total_macs - gone)
    discovery = discover(model, example_inputs)
    plan = Plan(model, discovery, QuantConfig.of(config))
    beside = plan.rows_beside()
    return Report(plan.rows() + beside, discovery.total_macs + sum(row.macs for row in beside))


def _as_they_run(model: nn.Module, rows: list[Row]) -> list[Row]:
    """The rows with what became of them since: a call of another kind may have made an owner fall back, and its user
    may have put another layer in its place; a float path beside it is then not run."""
    live, modules = owners(model), dict(model.named_modules(remove_duplicate=False))
    now, stopped = [], set()
    for row in rows:
        if row.reason == BESIDE and row.path.removesuffix(".float_path") in stopped:
            continue
        owner, _, name = row.path.rpartition(".")
        if owner in live and name in live[owner]["children"]:
            in_float = live[owner]["path"] == "float"
            row = replace(row, traced=None if in_float else live[owner]["path"], note=live[owner]["reason"])
            if in_float:
                stopped.add(row.path)
                row.reason = DIFFERS
                row.set_bits(None)
        elif row.reason is None and not any(
            isinstance(modules.get(path), tuple(KINDS.values()))
            for path in (row.path, f"{row.path}.base_layer")  # the latter: inside an adapter that was put around it
        ):
            stopped.add(row.path)
            row = replace(row, reason=CHANGED)
            row.set_bits(None)
        now.append(row)
    return now
