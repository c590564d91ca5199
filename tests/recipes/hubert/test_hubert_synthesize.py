"""Synthetic speech with phones, where espeak-ng is installed; a clear message where it is not."""

import ctypes.util

import pytest

pytest.importorskip("soundfile")
from click.testing import CliRunner  # noqa: E402

from recipes.hubert import synthesize  # noqa: E402


def test_without_espeak_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesize, "_LIBRARY", "libabsent.so.1")
    (tmp_path / "texts.txt").write_text("hello\n")
    result = CliRunner().invoke(synthesize.main, [str(tmp_path / "out"), "--texts", str(tmp_path / "texts.txt")])
    assert result.exit_code == 1 and "install espeak-ng" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="needs espeak-ng")
def test_phones_lie_within_the_speech():
    espeak = synthesize.Espeak()
    wave, phones = espeak.say("message from phone number")
    times = [time for time, _ in phones]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= len(wave) / espeak.rate
    assert [symbol for _, symbol in phones][:3] == ["m", "ɛ", "s"]
