"""HuBERT with four encoders: models, presets, pre-training, interoperability, and the paper's Table 1 recomputed."""

from .config import HubertConfig, load_config, presets
from .head import HubertHead
from .model import Hubert, HubertOutput
from .pretraining import HubertForPretraining

__all__ = ["Hubert", "HubertConfig", "HubertForPretraining", "HubertHead", "HubertOutput", "load_config", "presets"]
