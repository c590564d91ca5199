"""Recordings: decoding, resampling, padding or cutting, and files that cannot be used."""

import itertools
import json

import numpy as np
import pytest
import tiny_models
import torch

from bitquant.data.audio import check_audio, read_audio
from bitquant.data.recordings import Recordings
from bitquant.sources.source import Source

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


class Masked(torch.nn.Module):
    def forward(self, input_values, attention_mask=None):
        return input_values.unsqueeze(-1)


class Mel(torch.nn.Module):
    def forward(self, input_features):
        return input_features


def tone(seconds, rate, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    """Recordings of 0.2 to 1 s in three formats and rates, one of them in stereo."""
    folder = tmp_path / "audio"
    (folder / "sub").mkdir(parents=True)
    for i in range(12):
        rate, suffix = ((16000, "wav"), (22050, "flac"), (44100, "ogg"))[i % 3]
        wave = tone(0.2 + 0.07 * i, rate)
        soundfile.write(folder / f"{'sub/' * (i % 2)}{i}.{suffix}", np.stack([wave, wave], 1) if i == 0 else wave, rate)
    return folder


def source(model, directory, **preprocessor):
    if preprocessor:
        (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return Source("model", model, directory, [])


def test_decodes_and_resamples(folder):
    for name in ("0.wav", "sub/1.flac", "2.ogg"):
        seconds = check_audio(folder / name)
        wave = read_audio(folder / name, 16000)
        assert wave.dtype == np.float32
        assert len(wave) == pytest.approx(16000 * seconds, abs=2)
        middle = slice(400, len(wave) - 400)
        assert wave[middle] == pytest.approx(tone(seconds, 16000)[: len(wave)][middle], abs=0.05)
    assert len(read_audio(folder / "0.wav", 16000, start=0.1, seconds=0.05)) == 800


def test_what_cannot_be_used_is_named_with_the_reason(folder, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "short.wav", noise[:320], 16000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(16000) == 9, np.nan, noise), 16000, subtype="FLOAT")
    (folder / "broken.ogg").write_bytes((folder / "2.ogg").read_bytes()[:50])
    (folder / "text.wav").write_text("not a recording")
    data = Recordings.read(folder, source(Masked(), tmp_path))
    kept, skipped = data.usable(data.samples)
    assert len(kept) == 12
    reasons = dict(skipped)
    assert reasons["silent.wav"] == "it is silent"
    assert reasons["short.wav"] == "it is too short, 20 ms"
    assert reasons["nan.wav"] == "it holds NaN or infinite samples"
    assert reasons["text.wav"].startswith("it cannot be decoded")
    assert reasons["broken.ogg"].startswith("it cannot be decoded")


def test_pads_and_masks_where_the_model_takes_a_mask(folder, tmp_path):
    data = Recordings.read(folder, source(Masked(), tmp_path))
    batch = next(iter(data.batches(["0.wav", "sub/3.wav"], batch_size=2)))
    assert batch["input_values"].shape == batch["attention_mask"].shape == (2, 6560)
    assert batch["attention_mask"].sum(1).tolist() == [3200, 6560]
    assert batch["input_values"][0, 3200:].abs().max() == 0


def test_cuts_to_the_shortest_where_it_takes_none(folder, tmp_path):
    data = Recordings.read(folder, source(tiny_models.Frames(), tmp_path))
    kept, _ = data.usable(data.samples)
    batch = next(iter(data.batches(kept[:4], batch_size=4, seed=0)))
    assert set(batch) == {"waveform"}
    assert batch["waveform"].shape == (4, min(round(8000 * data.seconds[name]) for name in kept[:4]))
    assert [len(b["waveform"]) for b in data.batches(kept[:4], batch_size=4)] == [1] * 4


def test_long_recordings_give_another_part_each_epoch(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.linspace(-0.9, 0.9, 80000), 16000)
    data = Recordings.read(tmp_path, source(Masked(), tmp_path), max_seconds=1.0)
    kept, _ = data.usable(data.samples)
    starts = [b["input_values"][0, 0].item() for b in itertools.islice(data.batches(kept, batch_size=1, seed=0), 5)]
    again = [b["input_values"][0, 0].item() for b in itertools.islice(data.batches(kept, batch_size=1, seed=0), 5)]
    assert starts == again
    assert len(set(starts)) == 5
    measured = next(iter(data.batches(kept, batch_size=1)))["input_values"]
    assert measured.shape == (1, 16000)
    assert measured[0, 0].item() == pytest.approx(-0.9, abs=1e-4)


def test_split_is_by_file_name(folder, tmp_path):
    data = Recordings([f"{i}.wav" for i in range(300)], source(Masked(), tmp_path), root="anywhere")
    fewer = Recordings([f"{i}.wav" for i in range(0, 300, 2)], source(Masked(), tmp_path), root="elsewhere")
    assert set(fewer.split()[1]) <= set(data.split()[1])


def test_rate_and_normalisation_of_the_preprocessor(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "sampling_rate": 8000}
    config |= {"return_attention_mask": True, "feature_size": 1, "padding_value": 0.0}
    data = Recordings.read(folder, source(Masked(), tmp_path, **config))
    names = ["0.wav", "sub/3.wav"]
    batch = data.collate(names, None)
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True, return_attention_mask=True)
    waves = [read_audio(folder / name, 8000) for name in names]
    expected = extractor(waves, sampling_rate=8000, padding=True, return_tensors="pt")
    assert torch.allclose(batch["input_values"], expected["input_values"], atol=1e-5)
    assert torch.equal(batch["attention_mask"], expected["attention_mask"].to(torch.int64))


def test_log_mel_by_the_models_own_extractor(folder, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="takes log-mel features: put its preprocessor_config.json into"):
        Recordings.read(folder, source(Mel(), tmp_path))
    config = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "chunk_length": 1}
    data = Recordings.read(folder, source(Mel(), tmp_path, **config))
    assert data.collate(["0.wav", "sub/3.wav"], None)["input_features"].shape == (2, 80, 100)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"sampling_rate": 0}, "sampling rate of 0"),
        ({"sampling_rate": "16k"}, "sampling rate of '16k'"),
        ({"sampling_rate": 10**12}, "sampling rate of 1000000000000"),
        ({"feature_extractor_type": "os"}, "names no feature extractor"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 10**9}, "chunk_length 1000000000"),
    ],
)
def test_preprocessors_that_lie(folder, tmp_path, config, words):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=words):
        Recordings.read(folder, source(Masked(), tmp_path, **config))


def test_without_its_packages_the_extra_is_named(folder, tmp_path, monkeypatch):
    import sys

    for package in ("soundfile", "soxr"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ModuleNotFoundError, match=r"pip install 'bitquant-torch\[audio\]'"):
                read_audio(folder / "sub/1.flac", 16000)
