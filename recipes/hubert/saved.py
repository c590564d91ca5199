"""Pre-trained models on disk: a directory that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitquant.atomic import replacing, write
from bitquant.json_object import read_object

from .config import HubertConfig
from .pretraining import HubertForPretraining

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MODEL_TYPE = "bitquant-hubert"


def save_pretrained(config: HubertConfig, state: dict[str, Tensor], directory: str | Path, **facts) -> None:
    """Writes a state_dict of ``HubertForPretraining`` with its configuration, in place of an older one.

    Args:
        facts: JSON-able, about how it was trained.
    """
    content = {"model_type": MODEL_TYPE, "config": config.to_dict(), **facts}
    with replacing(directory, overwrite=True, replaceable=is_pretrained) as target:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / WEIGHTS)
        write(target / CONFIG, json.dumps(content, indent=1).encode())


def load_pretrained(directory: str | Path) -> HubertForPretraining:
    """The trunk with its head, in eval mode.

    Raises:
        ValueError: not a pre-trained model, or a damaged one.
    """
    directory = Path(directory)
    if not is_pretrained(directory):
        raise ValueError(f"{directory} is not a model that python -m recipes.hubert.pretrain wrote")
    model = HubertForPretraining(HubertConfig.from_dict(read_object(directory / CONFIG)["config"]))
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{directory / WEIGHTS} is damaged: {error}") from None
    return model.eval()


def is_pretrained(directory: Path) -> bool:
    try:
        return read_object(directory / CONFIG).get("model_type") == MODEL_TYPE
    except (OSError, ValueError):
        return False
