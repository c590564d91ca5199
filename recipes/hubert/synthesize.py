"""Synthetic speech with timed phones: ``python -m recipes.hubert.synthesize OUT --texts FILE`` (needs espeak-ng).

For judging clusters, which real recordings cannot do without phone labels. Uses libespeak-ng in this process.
"""

from __future__ import annotations

import ctypes
import json
import random
from pathlib import Path

import click
import numpy as np
import soundfile

from .progress import watched

VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
_LIBRARY = "libespeak-ng.so.1"
_SYNCHRONOUS, _PHONEMES, _IPA = 2, 1, 2  # ways to speak; bits that ask for events of phones, named in IPA
_RATE, _PITCH = 1, 3  # parameters
_UTF8 = 1
_END, _PHONEME = 0, 7  # kinds of events


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Id),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """One speech synthesizer; ``OSError`` where espeak-ng is not installed.

    Args:
        data: folder that holds ``espeak-ng-data``. Default: the system's.
    """

    def __init__(self, data: str | None = None):
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise OSError(f"{_LIBRARY} is missing: install espeak-ng") from None
        self._waves, self._phones = [], []
        self._callback = _CALLBACK(self._hear)  # kept, or it would be freed
        path = data.encode() if data else None
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _PHONEMES | _IPA)
        if self.rate <= 0:
            raise OSError("espeak-ng finds no voices: install espeak-ng-data")
        self._library.espeak_SetSynthCallback(self._callback)

    def _hear(self, wave, count, events) -> int:
        if count > 0 and wave:
            self._waves.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _END:
            event = events[index]
            if event.type == _PHONEME:
                self._phones.append((event.audio_position / 1000, event.id.string.decode("utf-8", "replace")))
            index += 1
        return 0

    def say(self, text: str, voice: str = "en-us", *, rate: int = 165, pitch: int = 50) -> tuple[np.ndarray, list]:
        """int16 (samples,) at ``self.rate``, and (seconds at which it starts, symbol) of each phone; an empty symbol is
        a pause."""
        self._waves, self._phones = [], []
        self._library.espeak_SetVoiceByName(voice.encode())
        self._library.espeak_SetParameter(_RATE, rate, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        spoken = text.encode()
        self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._waves) if self._waves else np.zeros(0, np.int16), self._phones


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--texts", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
              help="A sentence a line.")  # fmt: skip
@click.option("--count", default=500, show_default=True, help="Utterances.")
@click.option("--seed", default=0, show_default=True, help="Of sentences, voices, rates and pitches.")
@click.option("--espeak-data", help="Folder that holds espeak-ng-data, if it is not the system's.")
def main(out: Path, texts: Path, count: int, seed: int, espeak_data: str | None) -> None:
    """Write utterances and a manifest with phones to OUT, for prepare."""
    sentences = [line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not sentences:
        raise click.ClickException(f"{texts} holds no sentence")
    try:
        espeak = Espeak(espeak_data)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    rng, rows = random.Random(seed), []
    out.mkdir(parents=True, exist_ok=True)
    for number in watched(range(count), count, "speaking"):
        text, voice = rng.choice(sentences), rng.choice(VOICES)
        wave, phones = espeak.say(text, voice, rate=rng.randint(130, 200), pitch=rng.randint(20, 80))
        name = f"{number:05}.flac"
        soundfile.write(out / name, wave, espeak.rate, subtype="PCM_16")
        rows.append({"path": name, "speaker": voice, "text": text, "phones": phones})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "manifest.jsonl").write_text(lines, encoding="utf-8")
    click.echo(f"wrote {out / 'manifest.jsonl'}")


if __name__ == "__main__":
    main()
