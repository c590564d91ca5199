"""Small data directories for tests: noise with a pitch, as wav files."""

import numpy as np
import soundfile

from recipes.hubert.data.manifest import read_manifest
from recipes.hubert.prepare import prepare
from recipes.hubert.targets import make_targets
from recipes.hubert.targets.mfcc import Mfcc

RATE = 16_000


def tone(seconds, seed, rate=RATE):
    """float32: a tone that glides, and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.1 * np.sin(2 * np.pi * (200 + 150 * rng.uniform() * time) * time) + 0.01 * rng.normal(size=len(time))
    return wave.astype(np.float32)


def recordings(folder, lengths, rate=RATE):
    """One wav a length in seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seconds in enumerate(lengths):
        soundfile.write(folder / f"{number:03}.wav", tone(seconds, number, rate), rate)
    return folder


def data_directory(root, lengths, clusters=8):
    """A prepared folder with MFCC targets, half of it held out; its utterances."""
    audio = recordings(root / "audio", lengths)
    prepare(audio, root / "data", held_out=0.3, say=lambda line: None)
    utterances = read_manifest(root / "data")
    make_targets(root / "data" / "targets" / f"mfcc-{clusters}", utterances, Mfcc(), clusters, share=1.0)
    return root / "data", utterances
