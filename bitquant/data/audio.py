"""Recorded sound from files: mono float32 at the rate that a model takes.

Nothing is allocated by what a header claims: files are read in blocks until they end.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg")
RATES = (1000, 768000)  # samples a second
LEAST_SECONDS = 0.1
MOST_SAMPLES = 2**31  # of each channel: 12 hours at 48 kHz
SILENCE = 1e-4  # peak, of a full scale of 1: -80 dB
BLOCK = 1 << 18  # values


def check_audio(file):
    """Reads a recording once, in blocks, and returns its length.

    Args:
        file (Path): wav, flac or ogg.

    Returns:
        float: seconds.

    Raises:
        ValueError: the reason why it cannot be used: undecodable, too short or long, silent, an unusual rate, or values
            that are not finite.
    """
    frames, peak = 0, 0.0
    with _opened(file) as sound:
        for block in _blocks(sound):
            frames += len(block)
            peak = max(peak, float(np.abs(block).max(initial=0.0)))  # NaN stays: max() keeps the first
            if not np.isfinite(block).all():
                raise ValueError("it holds NaN or infinite samples")
            if frames > MOST_SAMPLES:
                raise ValueError(f"it is too long, more than {MOST_SAMPLES:,} samples")
        seconds = frames / sound.samplerate
    if seconds < LEAST_SECONDS:
        raise ValueError(f"it is too short, {1000 * seconds:.0f} ms")
    if peak < SILENCE:
        raise ValueError("it is silent")
    return seconds


def read_audio(file, rate, *, start=0.0, seconds=None):
    """Part of a recording, its channels averaged, resampled.

    Args:
        file (Path): wav, flac or ogg.
        rate (int): samples a second of the result.
        start (float), seconds (float, optional): the part. Default: all of it.

    Returns:
        ndarray: float32 (T,), full scale 1.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        with _opened(file) as sound:
            found = sound.samplerate
            sound.seek(min(int(start * found), sound.frames))
            most = MOST_SAMPLES if seconds is None else round(seconds * found)
            wave = np.concatenate([np.zeros(0, np.float32), *(block.mean(axis=1) for block in _blocks(sound, most))])
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from None
    return wave if found == rate else _soxr().resample(wave, found, rate).astype(np.float32, copy=False)


@contextmanager
def _opened(file):
    """A file as soundfile's SoundFile; what goes wrong in the block is a ValueError."""
    soundfile = _soundfile()
    if not Path(file).is_file():  # opening a pipe may never end
        raise ValueError("it is no file")
    try:
        with soundfile.SoundFile(file) as sound:
            if not RATES[0] <= sound.samplerate <= RATES[1]:
                raise ValueError(f"its sampling rate of {sound.samplerate} Hz is not in {RATES[0]}..{RATES[1]}")
            yield sound
    except (soundfile.LibsndfileError, OSError, EOFError) as error:
        raise ValueError(f"it cannot be decoded: {getattr(error, 'error_string', error)}") from None


def _blocks(sound, most=float("inf")):
    """float32 (samples, channels) after the other, no more than ``most`` samples together."""
    size = max(1, BLOCK // sound.channels)
    while most > 0 and len(block := sound.read(min(size, most), dtype="float32", always_2d=True)):
        most -= len(block)
        yield block


def _soundfile():
    try:
        import soundfile
    except ModuleNotFoundError:
        raise ModuleNotFoundError("reading recordings needs an extra: pip install 'bitquant-torch[audio]'") from None
    return soundfile


def _soxr():
    try:
        import soxr
    except ModuleNotFoundError:
        raise ModuleNotFoundError("resampling recordings needs an extra: pip install 'bitquant-torch[audio]'") from None
    return soxr
