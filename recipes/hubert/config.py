"""The configuration of a HuBERT model, and the presets: one small TOML file each."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"
_CHOICES = {"front_end": ("standard", "fastconv", "fastconv_small"), "groupnorm": ("masked", "reference")}


@dataclass(frozen=True)
class HubertConfig:
    """What a model is built from (hubert.md 1.1, 1.8, 9).

    Args:
        encoder: ``kind`` (a name in ``recipes.hubert.encoders.ENCODERS``), ``dim`` and that encoder's own options.
        front_end: waveform front end, ``"standard"``, ``"fastconv"``, or ``"fastconv_small"``, a quarter as wide.
        groupnorm: the front end's norm over time, ``"masked"`` (padding is ignored) or ``"reference"`` (padding takes
            part, as in the published models).
        positional_conv: add the convolutional position embedding before the encoder.
        sequence_multiple: frames are padded to a multiple of this inside the encoder, and cut again.
        dropout: before the encoder; the encoder has its own. input_dropout: on the projected features.
        feature_grad_scale: factor on the gradient that enters the front end.
        final_dim: size of the space in which frames meet class embeddings.
        classes: number of classes of each label set.

    Raises:
        ValueError: a value that is not among the choices, or an encoder without ``kind`` and ``dim``.
    """

    encoder: dict[str, Any]
    front_end: str = "standard"
    groupnorm: str = "masked"
    positional_conv: bool = True
    sequence_multiple: int = 1
    dropout: float = 0.1
    input_dropout: float = 0.1
    feature_grad_scale: float = 0.1
    final_dim: int = 256
    classes: tuple[int, ...] = field(default=(100,))

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}; got {getattr(self, key)!r}")
        if missing := {"kind", "dim"} - set(self.encoder):
            raise ValueError(f"the encoder's configuration lacks {', '.join(sorted(missing))}")
        if self.sequence_multiple < 1:
            raise ValueError(f"sequence_multiple must be at least 1; got {self.sequence_multiple}")

    @property
    def dim(self) -> int:
        """Channels of the encoder."""
        return self.encoder["dim"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; ``HubertConfig.from_dict`` of it is equal to this."""
        return {**dataclasses.asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HubertConfig:
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(data) - known:
            raise ValueError(f"unknown configuration field {min(unknown)!r}; known: {', '.join(sorted(known))}")
        return cls(**data)


def presets() -> list[str]:
    """Names of the presets."""
    return sorted(file.stem for file in CONFIGS.glob("*.toml"))


def load_config(name: str | Path, **overrides) -> HubertConfig:
    """A preset by name, or any TOML file by path, with some fields replaced.

    Raises:
        ValueError: no such preset or file, invalid TOML, or unknown fields.
    """
    file = Path(name)
    if file.suffix != ".toml":
        file = CONFIGS / f"{name}.toml"
    if not file.is_file():
        raise ValueError(f"no preset {str(name)!r}; presets: {', '.join(presets())}; or give the path of a .toml file")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None
    return HubertConfig.from_dict({**data, **overrides})
