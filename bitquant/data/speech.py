"""What a speech model takes: waveforms, or the features that its own feature extractor makes of them."""

import numpy as np
import torch

from bitquant.data.audio import RATES
from bitquant.data.kind import KNOWN_ARGUMENTS
from bitquant.json_object import read_object

RATE = 16000
MASK = "attention_mask"
# sizes that a feature extractor allocates by; far above what any model uses
_LIMITS = {"feature_size": 4096, "num_mel_bins": 4096, "n_fft": 65536, "hop_length": 65536, "chunk_length": 3600}
_LIMITS |= {"max_length": 10**6, "nb_max_frames": 10**6, "stride": 64}


def speech_processor(source):
    """The waveform or feature processor of a model, as its ``preprocessor_config.json`` and its arguments say.

    Raises:
        ValueError: the model takes log-mel features and no ``preprocessor_config.json`` says which, or the file is not
            a valid one.
        ModuleNotFoundError: it names a feature extractor, and transformers is not installed.
    """
    model_config = getattr(source.model, "config", None)
    if "decoder_input_ids" in source.arguments:
        raise ValueError(f"{source.name} is an encoder with a decoder: write a package.module:factory for the encoder")
    file = source.file("preprocessor_config.json")
    config = _checked(file) if file else {}
    kind = config.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")
    if file and kind != "Wav2Vec2FeatureExtractor":
        return Features(_extractor(kind, config, file), source.arguments)
    if "input_features" in source.arguments or hasattr(model_config, "num_mel_bins"):
        raise ValueError(
            f"{source.name} takes log-mel features: put its preprocessor_config.json into {source.directory}"
        )
    argument = next((a for a in source.arguments if a in KNOWN_ARGUMENTS), source.arguments[0])
    # models whose first layer normalises over time were trained without a mask, on zeros
    mask = config.get("return_attention_mask", getattr(model_config, "feat_extract_norm", None) != "group")
    stated = (config.get("sampling_rate"), getattr(model_config, "sampling_rate", None))
    rate = next((r for r in (*stated, getattr(source.model, "sampling_rate", None)) if r is not None), RATE)
    return Waveforms(
        argument,
        _rate(rate, source.name),
        mask=bool(mask) and MASK in source.arguments,
        normalize=bool(config.get("do_normalize", False)),
    )


class Waveforms:
    """Pads waveforms to the longest.

    Args:
        argument (str): name of the model's argument.
        rate (int): samples a second.
        mask (bool): also give ``attention_mask``.
        normalize (bool): to mean 0 and variance 1, each on its own.
    """

    def __init__(self, argument, rate, *, mask=False, normalize=False):
        self.argument, self.rate, self.mask, self.normalize = argument, rate, mask, normalize

    @property
    def mixes_lengths(self):
        """Whether waveforms of different lengths may share a batch."""
        return self.mask

    def __call__(self, waves):
        """float32 arrays (T,) -> the argument, float32 (B, T), and if wanted ``attention_mask``, int64 (B, T)."""
        values = torch.zeros(len(waves), max(map(len, waves)))
        mask = torch.zeros(values.shape, dtype=torch.int64)
        for row, wave in enumerate(waves):
            if self.normalize:
                wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
            values[row, : len(wave)] = torch.from_numpy(wave)
            mask[row, : len(wave)] = 1
        return {self.argument: values, MASK: mask} if self.mask else {self.argument: values}


class Features:
    """A feature extractor of transformers; what it gives and the model does not take is dropped."""

    mixes_lengths = True  # it pads in its own way

    def __init__(self, extractor, arguments):
        self.extractor, self.arguments = extractor, arguments
        self.rate = extractor.sampling_rate

    def __call__(self, waves):
        """float32 arrays (T,) -> keyword arguments of the model, such as ``input_features`` (B, mels, frames)."""
        made = self.extractor(list(waves), sampling_rate=self.rate, return_tensors="pt")
        return {name: value for name, value in made.items() if name in self.arguments}


def _checked(file):
    config = read_object(file)
    for key, most in _LIMITS.items():
        if (value := config.get(key)) is not None and not (isinstance(value, int) and 0 < value <= most):
            raise ValueError(f"{file} gives {key} {value!r}, which is not in 1..{most}")
    if config.get("sampling_rate") is not None:
        _rate(config["sampling_rate"], file)
    return config


def _rate(rate, place):
    if not (isinstance(rate, int) and RATES[0] <= rate <= RATES[1]):
        raise ValueError(f"{place} gives a sampling rate of {rate!r}, which is not in {RATES[0]}..{RATES[1]} Hz")
    return rate


def _extractor(kind, config, file):
    from bitquant.skeleton import import_transformers, silent

    transformers = import_transformers()
    cls = getattr(transformers, str(kind), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.SequenceFeatureExtractor)):
        raise ValueError(f"{file} names no feature extractor that transformers knows: {kind!r}")
    try:
        with silent(transformers):
            return cls(**{k: v for k, v in config.items() if k not in ("auto_map", "feature_extractor_type")})
    except Exception as error:  # each class validates in its own way
        raise ValueError(f"{file} is not a valid {kind} configuration: {error}") from None
