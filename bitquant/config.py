"""What to binarize and how: one small dataclass that prints, compares and round-trips through JSON."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 1
PATTERNS = ("float_embeddings", "modules_to_not_convert", "rules")  # fields that hold regular expressions

CHOICES = {
    "weight_bits": (1, 32),
    "embedding_bits": (1, 2, 4, 8, 32),
    "activation_bits": (1, 2, 4, 8, 32),
    "weight_scale": ("tensor", "row"),
    "weight_center": ("none", "tensor", "row"),
    "ste": ("window", "smooth"),
    "attention": ("table", "row-max"),
    "depthwise": ("binary", "float"),
}

PRESETS: dict[str, dict[str, Any]] = {
    # BiT as published and released (reference: contract 8), without its sign(0) = 0 and dynamic minimum
    "bit-ref": {
        "weight_scale": "tensor",
        "weight_scale_learnable": False,
        "weight_center": "tensor",
        "ste": "window",
        "attention": "table",
        "relu": True,
        "signed_init": 2.0,
        "depthwise": "binary",
    },
    # ours: better at the same bits
    "bit-plus": {
        "weight_scale": "row",
        "weight_scale_learnable": True,
        "weight_center": "none",
        "ste": "window",
        "attention": "row-max",
        "relu": False,
        "signed_init": 1.0,
        "depthwise": "float",
    },
}


def _close(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4) or sorted(known)[:5]
    return ", ".join(repr(n) for n in near)


@dataclass(frozen=True)
class QuantConfig:
    """How ``quantize_`` binarizes a model. Start from a preset: ``QuantConfig.preset("bit-plus", ...)``.

    Args:
        name: the preset these values started from; kept for the report.
        weight_bits: 1, or 32 for float weights.
        activation_bits: 1, 2, 4, 8, or 32 for float activations; attention follows it.
        weight_scale: one weight scale per ``"tensor"`` or per output ``"row"`` (embeddings: always per row).
        weight_scale_learnable: train the scale as ``s_init * exp(r)``; otherwise it is ``mean|W|`` at every step.
        weight_center: mean subtracted before the sign: ``"none"``, of the whole ``"tensor"``, or of each ``"row"``.
        ste: gradient of the signed set: ``"window"`` is 1 on ``|u| <= 1`` (BiT), ``"smooth"`` is ``max(0, 2 - 2|u|)``.
        attention: which keys a query takes: ``"table"`` compares a softmax from an integer table with a learnt
            threshold (BiT), ``"row-max"`` takes every key within a margin of the row's best score.
        attention_keep: for ``"row-max"``, a key is taken when its softmax weight is at least this share of the best.
        relu: replace GELU and SiLU by ReLU in the student, so that the next layer's input uses the {0, 1} set.
        signed_init: initial scale of a signed input, in units of its mean magnitude over the root of its highest level.
        depthwise: ``"float"`` leaves depthwise convolutions as they are: each output sums a few products only, so that
            one bit loses most there, while they hold few of a model's weights. ``"binary"``: as other layers. A rule
            for some of them sets this field.
        low_rank: rank of a float path (fp16 in the file) beside each quantized product of a linear layer or
            pointwise convolution: it takes the few directions that hold most of the input, the levels the rest. 0: no
            path.
        embedding_bits: of token embedding tables: 1, 2, 4, 8, or 32 for float tables. Tables of 2 to 8 bits have no
            centre, and their scale starts at the best one for Gaussian rows.
        float_embeddings: regular expression of embedding tables that stay float (positions, token types).
        modules_to_not_convert: modules left in float: exact name, a suffix of it at a dot, or ``"re:..."``.
        rules: per-module overrides, ``{exact name or "re:...": {field: value} or None}``; ``None`` leaves the module
            in float, an exact name goes before a pattern, the innermost exact name before the others, earlier
            patterns before later ones.

    A rule holds for the module it names (a pattern: for those whose whole name it matches) and all modules below. Stem
    and head are binarized only where a rule, ``{}`` is enough, has exactly their name.

    Raises:
        ValueError: unknown preset, field or value, with what would be right.
    """

    name: str = "bit-plus"
    weight_bits: int = 1
    activation_bits: int = 1
    weight_scale: str = "row"
    weight_scale_learnable: bool = True
    weight_center: str = "none"
    ste: str = "window"
    attention: str = "row-max"
    attention_keep: float = 0.25
    relu: bool = False
    signed_init: float = 1.0
    depthwise: str = "float"
    low_rank: int = 0
    embedding_bits: int = 1
    float_embeddings: str = r".*(position|token_type|segment|relative|rel_|bias).*"
    modules_to_not_convert: tuple[str, ...] = ()
    rules: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    version: int = FORMAT_VERSION

    def __post_init__(self):
        skipped = self.modules_to_not_convert
        object.__setattr__(self, "modules_to_not_convert", (skipped,) if isinstance(skipped, str) else skipped)
        self._check_types()
        object.__setattr__(self, "modules_to_not_convert", tuple(self.modules_to_not_convert))
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed or type(getattr(self, key)) is not type(allowed[0]):
                raise ValueError(f"{key} must be one of {', '.join(map(str, allowed))}; got {getattr(self, key)!r}")
        if not 0.0 < self.attention_keep <= 1.0:
            raise ValueError(f"attention_keep must be in (0, 1]; got {self.attention_keep}")
        if not 0.0 < self.signed_init < math.inf:
            raise ValueError(f"signed_init must be positive; got {self.signed_init}")
        if self.version != FORMAT_VERSION:
            raise ValueError(f"this bitquant reads configuration version {FORMAT_VERSION}, not {self.version!r}")
        for pattern in (*self.modules_to_not_convert, *self.rules, "re:" + self.float_embeddings):
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"rule {pattern!r} is not a valid regular expression: {error}") from None
        for pattern, overrides in self.rules.items():
            if overrides is not None:
                if not isinstance(overrides, dict):
                    raise ValueError(f"rule {pattern!r} must map to null or to a dictionary of fields")
                if nested := {"rules", "modules_to_not_convert"} & set(overrides):
                    raise ValueError(f"rule {pattern!r} cannot set {', '.join(sorted(nested))}")
                self.overridden(overrides)

    def _check_types(self):
        for key in ("weight_scale_learnable", "relu"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} must be true or false; got {getattr(self, key)!r}")
        if not isinstance(self.low_rank, int) or isinstance(self.low_rank, bool) or self.low_rank < 0:
            raise ValueError(f"low_rank must be a whole number from 0; got {self.low_rank!r}")
        for key in ("attention_keep", "signed_init"):
            if not isinstance(getattr(self, key), (int, float)) or isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} must be a number; got {getattr(self, key)!r}")
        for key in ("name", "float_embeddings"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key} must be a string; got {getattr(self, key)!r}")
        skipped = self.modules_to_not_convert
        if not isinstance(skipped, (list, tuple, set)) or not all(isinstance(name, str) for name in skipped):
            raise ValueError(f"modules_to_not_convert must be a list of module names; got {skipped!r}")
        if not isinstance(self.rules, dict) or not all(isinstance(name, str) for name in self.rules):
            raise ValueError(f"rules must be a dictionary of module names; got {self.rules!r}")

    def overridden(self, overrides: dict[str, Any]) -> QuantConfig:
        """With some fields replaced, and without rules. ValueError for an unknown field or value."""
        known = {f.name for f in dataclasses.fields(self)}
        for key in overrides:
            if key not in known:
                raise ValueError(f"unknown configuration field {key!r}; did you mean {_close(key, known)}?")
        return dataclasses.replace(self, **{"rules": {}, **overrides})

    @property
    def table_bits(self) -> int:
        """Of an embedding table that is quantized: ``embedding_bits``, or 32 while the weights are in float."""
        return 32 if self.weight_bits == 32 else self.embedding_bits

    @classmethod
    def preset(cls, name: str, **overrides) -> QuantConfig:
        """The named preset (``bit-ref`` or ``bit-plus``) with some fields replaced."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}")
        return cls(name=name, **PRESETS[name]).overridden(overrides)

    @classmethod
    def of(cls, given: ConfigLike) -> QuantConfig:
        """A configuration as users give it: itself, a preset's name, a dictionary, or None for ``bit-plus``."""
        if isinstance(given, QuantConfig):
            return given
        given = "bit-plus" if given is None else given
        if isinstance(given, str):
            return cls.preset(given)
        return cls.from_dict(dict(given) if isinstance(given, Mapping) else given)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; ``QuantConfig.from_dict`` of it is equal to this."""
        return {**dataclasses.asdict(self), "modules_to_not_convert": list(self.modules_to_not_convert)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantConfig:
        if not isinstance(data, dict):
            raise ValueError(f"a configuration must be a JSON object, not {type(data).__name__}")
        return cls().overridden(data)

    def for_module(self, path: str) -> QuantConfig | None:
        """The configuration that holds for one module path; None when it stays float."""
        overrides = self.overrides(path)
        return self.overridden(overrides) if overrides else self if overrides == {} else None

    def overrides(self, path: str) -> dict[str, Any] | None:
        """The fields that a rule sets for one module path; None when it stays float."""
        lineage = _lineage(path)
        if any(_names(pattern, name) for pattern in self.modules_to_not_convert for name in lineage):
            return None
        exact = [name for name in lineage if name in self.rules]
        matching = exact or [p for p in self.rules if any(_matches(p, name) for name in lineage)]
        return self.rules[matching[0]] if matching else {}

    def check_rules(self, paths) -> None:
        """Raise ValueError for the first rule that holds for none of ``paths``, listing near names."""
        known = {name for path in paths for name in _lineage(path)}
        for pattern, match in [(p, _names) for p in self.modules_to_not_convert] + [(p, _matches) for p in self.rules]:
            if not any(match(pattern, name) for name in known):
                near = _close(pattern, known)
                raise ValueError(f"rule {pattern!r} matches no layer that could be binarized; near names: {near}")


def _lineage(path: str) -> list[str]:
    """A module path and those of the modules around it, innermost first."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], path) is not None
    return pattern == path


def _names(pattern: str, path: str) -> bool:
    """Skip-list semantics: also a suffix of the path that begins at a dot."""
    return _matches(pattern, path) or path.endswith("." + pattern)


ConfigLike = QuantConfig | str | Mapping[str, Any] | None  # see ``QuantConfig.of``
