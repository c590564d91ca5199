"""What a pre-training run is: one TOML file, no other source of settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import CONFIGS, HubertConfig, load_config, tomllib
from ..data.batches import Batching

FOLDER = CONFIGS / "pretraining"
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Iteration:
    """One round of clustering and training, from fresh weights.

    Args:
        updates: of the weights. clusters: k of k-means.
        layer: cluster this layer of the model of the iteration before; None clusters MFCC.
        share: of the training utterances that k-means is fitted on.
    """

    updates: int
    clusters: int
    layer: int | None = None
    share: float = 0.1

    def __post_init__(self):
        if self.updates < 1 or self.clusters < 2 or not 0 < self.share <= 1:
            raise ValueError(
                "an iteration needs updates >= 1, clusters >= 2 and a share in (0, 1]; got "
                f"{self.updates}, {self.clusters} and {self.share}"
            )


@dataclass(frozen=True)
class Optimization:
    """AdamW on all tensors alike; the rate rises linearly over the ``warmup`` share of the updates and falls linearly
    to 0 (hubert.md 1.7).

    Args:
        batches: micro-batches an update, over all workers and accumulation steps: the batch is the same however many
            workers share it.
        clip: largest gradient norm, of gradients averaged over masked frames.
        precision: ``"fp32"`` or ``"bf16"`` (autocast; weights, norms, cosines and the loss stay in fp32).
    """

    batches: int = 32
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    warmup: float = 0.08
    clip: float = 10.0
    precision: str = "bf16"

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.batches < 1 or self.lr <= 0 or self.clip <= 0 or not 0 <= self.warmup < 1:
            raise ValueError("batches, lr and clip must be above 0 and warmup in [0, 1)")


@dataclass(frozen=True)
class Quantization:
    """How a pre-trained model is binarized: as for ``bitquant.distill``."""

    preset: str = "bit-plus"
    chain: str | None = None
    steps: int = 1000
    lr: float = 1e-3


@dataclass(frozen=True)
class PretrainingConfig:
    """
    Args:
        models: name -> a preset of ``recipes.hubert``, the path of a model's TOML file, or its contents.
        iterations: in order; the first clusters MFCC, the others a layer of the model before.
        seed: of weights, batches, masks and dropout. shuffled: train on permuted labels, as a control.
        checkpoint_every, validate_every, log_every: updates.
        corpora: what ``recipes.hubert.run`` fetches.
    """

    models: dict[str, Any]
    iterations: tuple[Iteration, ...]
    batching: Batching = field(default_factory=Batching)
    optimization: Optimization = field(default_factory=Optimization)
    quantization: Quantization = field(default_factory=Quantization)
    seed: int = 0
    shuffled: bool = False
    checkpoint_every: int = 1000
    validate_every: int = 5000
    log_every: int = 100
    corpora: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.models or not self.iterations:
            raise ValueError("a configuration needs at least one model and one iteration")
        if self.iterations[0].layer is not None or any(i.layer is None for i in self.iterations[1:]):
            raise ValueError("the first iteration clusters MFCC; all others need the layer to cluster")
        if min(self.checkpoint_every, self.validate_every, self.log_every) < 1:
            raise ValueError("checkpoint_every, validate_every and log_every must be at least 1")

    def model(self, name: str, clusters: int) -> HubertConfig:
        """The configuration of one of the models, with so many classes.

        Raises:
            ValueError: no such model.
        """
        if name not in self.models:
            raise ValueError(f"no model {name!r} in this configuration; models: {', '.join(self.models)}")
        found = self.models[name]
        if isinstance(found, str):
            return load_config(found, classes=(clusters,))
        return HubertConfig.from_dict({**found, "classes": (clusters,)})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)


def load_pretraining(name: str | Path) -> PretrainingConfig:
    """A configuration by name (``paper``, ``laptop``), or any TOML file by path.

    Raises:
        ValueError: no such configuration, invalid TOML, unknown fields or impossible values.
    """
    file = Path(name)
    if file.suffix != ".toml":
        file = FOLDER / f"{name}.toml"
    if not file.is_file():
        names = ", ".join(sorted(f.stem for f in FOLDER.glob("*.toml")))
        raise ValueError(f"no configuration {str(name)!r}; configurations: {names}; or give the path of a .toml file")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        parts = {"batching": Batching, "optimization": Optimization, "quantization": Quantization}
        for key, cls in parts.items():
            data[key] = _make(cls, data.get(key, {}), f"[{key}]")
        data["iterations"] = tuple(_make(Iteration, part, "[[iterations]]") for part in data.get("iterations", ()))
        data["corpora"] = tuple(data.get("corpora", ()))
        return _make(PretrainingConfig, {"models": {}, **data}, "the configuration")
    except ValueError as error:  # tomllib's error is one
        raise ValueError(f"{file}: {error}") from None


_ALSO = {float: (int,), int: (), str: (), bool: ()}  # types that may stand for a default's


def _make(cls: type, values: dict[str, Any], place: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING
                and f.default_factory is dataclasses.MISSING}  # fmt: skip
    if unknown := set(values) - known:
        raise ValueError(f"{place} has no field {min(unknown)!r}; fields: {', '.join(sorted(known))}")
    if missing := required - set(values):
        raise ValueError(f"{place} lacks {', '.join(sorted(missing))}")
    for name, value in values.items():
        default = next(f.default for f in dataclasses.fields(cls) if f.name == name)
        if isinstance(default, (int, float, str)) and not isinstance(value, (type(default), *_ALSO[type(default)])):
            raise ValueError(f"{place}: {name} must be a value such as {default!r}; got {value!r}")
    return cls(**values)
