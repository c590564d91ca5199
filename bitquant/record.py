"""What ``quantize_`` did to a model: a row for each contraction, kept on the model and stored in its checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from bitquant.config import PATTERNS, QuantConfig


@dataclass
class Row:
    """One contraction: where it is, how much it computes, at which widths, and why it stays float if it does.

    ``macs`` are multiply-accumulates of one run on the example inputs; ``traced`` is how it was reached: ``module``
    (the layer itself), ``fx`` (a traced owner) or ``fall-back`` (interception without a graph); ``reason`` is one of
    ``bitquant.plan.REASONS`` and ``note`` what is special about this one, such as why its owner has no graph.
    """

    path: str
    kind: str
    role: str
    shapes: list[list[int]]
    macs: int
    traced: str | None
    reason: str | None
    weight_bits: int | None = None
    activation_bits: int = 32
    note: str | None = None

    @property
    def binarized(self) -> bool:
        """Whether its operands are 1 bit: weight and input of a layer, both inputs of a product."""
        widths = [self.weight_bits] if self.kind == "embedding" else [self.weight_bits or 1, self.activation_bits]
        return self.reason is None and max(widths) == 1

    @classmethod
    def of(cls, site, config: QuantConfig | None, reason: str | None, note: str | None = None) -> Row:
        """The row of a capture ``Site``: quantized by ``config``, or left in float for a ``reason``."""
        shapes = [list(shape) for shape in site.shapes]
        row = cls(site.path, site.kind, site.role, shapes, site.macs, site.traced, reason, note=note)
        row.set_bits(config)
        return row

    def set_bits(self, config: QuantConfig | None) -> None:
        """Note the widths of a configuration; None for float."""
        table = self.kind == "embedding"
        bits = 32 if config is None else config.table_bits if table else config.weight_bits
        self.weight_bits = bits if self.role in ("weight", "parameter") else None
        self.activation_bits = config.activation_bits if config and not table else 32


@dataclass
class Record:
    """What ``quantize_`` did to a model; kept on the model and stored in its checkpoint.

    ``overrides`` are the fields that a rule of the configuration set for a quantized layer, by path: the patterns that
    found them are matched once, when the model is quantized, and stored nowhere.
    """

    config: QuantConfig
    rows: list[Row]
    total_macs: int
    blocks: list[str] = field(default_factory=list)
    relu: list[str] = field(default_factory=list)
    overrides: dict[str, dict[str, Any]] | None = None

    def __post_init__(self):
        if self.overrides is None:
            quantized = [row.path for row in self.rows if row.reason is None]
            found = {path: _without_patterns(self.config.overrides(path) or {}) for path in quantized}
            self.overrides = {path: fields for path, fields in found.items() if fields}

    def config_of(self, path: str) -> QuantConfig:
        """The configuration of one quantized layer."""
        fields = self.overrides.get(path)
        return self.config.overridden(fields) if fields else self.config

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without a pattern."""
        return {**asdict(self), "config": _without_patterns(self.config.to_dict())}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """From what ``to_dict`` gave, checked before."""
        rows = [Row(**row) for row in data["rows"]]
        return cls(**{**data, "rows": rows, "config": QuantConfig(**data["config"])})


def _without_patterns(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in PATTERNS}


def is_quantized(model: nn.Module) -> bool:
    """Whether ``quantize_`` has been at a model: it is a student or packed."""
    return isinstance(getattr(model, "_bitquant", None), Record)


def record_of(model: nn.Module) -> Record:
    """The record ``quantize_`` left on a model. ValueError when the model was never quantized."""
    if not is_quantized(model):
        raise ValueError("this model is not quantized: call bitquant.quantize_(model, config, example_inputs) first")
    return model._bitquant


def present_record(model: nn.Module) -> Record:
    """The record of a quantized model, without what was removed from the model since. ValueError as ``record_of``."""
    record, paths = record_of(model), {path for path, _ in model.named_modules(remove_duplicate=False)}

    def stays(path: str, in_owner: bool) -> bool:
        return path in paths or (in_owner and path.rpartition(".")[0] in paths)

    rows = [row for row in record.rows if stays(row.path, row.role not in ("weight", "low-rank"))]
    macs = sum(row.macs for row in rows) - sum(row.macs for row in record.rows)
    return replace(
        record,
        rows=rows,
        total_macs=record.total_macs + macs,
        blocks=[path for path in record.blocks if stays(path, False)],
        relu=[path for path in record.relu if stays(path, True)],
    )
