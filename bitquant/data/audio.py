"""Recorded sound from files: mono float32 at the rate that a model takes."""

import numpy as np

SUFFIXES = (".wav", ".flac", ".ogg")
LEAST_SECONDS = 0.1
SILENCE = 1e-4  # peak, of a full scale of 1: -80 dB
BLOCK = 1 << 18


def check_audio(file):
    """Reads a recording once, in blocks, and returns its length.

    Args:
        file (Path): wav, flac or ogg.

    Returns:
        float: seconds.

    Raises:
        ValueError: the reason why it cannot be used: undecodable, too short, silent, or values that are not finite.
    """
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(file) as sound:
            frames, peak = 0, 0.0
            for block in sound.blocks(BLOCK, dtype="float32"):
                frames += len(block)
                peak = max(peak, float(np.abs(block).max(initial=0.0)))  # NaN stays: max() keeps the first
                if not np.isfinite(block).all():
                    raise ValueError("it holds NaN or infinite samples")
            seconds = frames / sound.samplerate
    except (soundfile.LibsndfileError, OSError, EOFError) as error:
        raise ValueError(f"it cannot be decoded: {getattr(error, 'error_string', error)}") from None
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
    """
    with _soundfile().SoundFile(file) as sound:
        found = sound.samplerate
        sound.seek(min(int(start * found), sound.frames))
        wave = sound.read(-1 if seconds is None else round(seconds * found), dtype="float32", always_2d=True)
    wave = wave.mean(axis=1)
    return wave if found == rate else _soxr().resample(wave, found, rate).astype(np.float32, copy=False)


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
