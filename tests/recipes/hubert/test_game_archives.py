"""Speech out of games' archives, made here by hand."""

import struct

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")

from recipes.hubert import game_archives, speech_packages  # noqa: E402


def queen(files, compression=1):
    """An archive of {name: content}."""
    at = 15 + len(files) * game_archives.QUEEN_ENTRY.size
    table, contents = b"", b""
    for name, content in files.items():
        table += game_archives.QUEEN_ENTRY.pack(name.encode(), 1, at + len(contents), len(content))
        contents += content
    return b"QTBL" + b"CEM10\0\0\0" + bytes([compression]) + struct.pack(">H", len(files)) + table + contents


def sky(files):
    """The table and the contents of [(number, samples, whether its offset counts in 16 bytes)]."""
    table, contents = len(files).to_bytes(4, "little"), b""
    for number, samples, coarse in files:
        contents += bytes(-len(contents) % 16)
        content = bytes(game_archives.SKY_HEADER) + bytes(samples)
        offset = len(contents) // 16 | 1 << 23 if coarse else len(contents)
        size = len(content) | 1 << 22  # the upper two bits say something else
        table += number.to_bytes(2, "little") + offset.to_bytes(3, "little") + size.to_bytes(3, "little")
        contents += content
    return table, contents


def test_queen(tmp_path):
    soundfile.write(tmp_path / "x.mp3", np.random.default_rng(0).normal(0, 0.1, 5512), 11025)
    sound = (tmp_path / "x.mp3").read_bytes()
    folder = tmp_path / "usr/share/scummvm/game"
    folder.mkdir(parents=True)
    (folder / "queen.1c").write_bytes(queen({"020001P2.SB": sound, "A.PCX": b"picture", "JOE02631.SB": b"broken"}))
    clips = {clip.id: clip for clip in speech_packages.amazon_queen(tmp_path, "en")}
    assert set(clips) == {"020001P2", "JOE02631"} and clips["020001P2"].text is None
    wave, rate = soundfile.read(clips["020001P2"].file)
    assert rate == 11025 and len(wave) >= 5512
    assert clips["JOE02631"].file.read_bytes() == b"broken"
    for wrong in (b"", b"RIFF" + bytes(20), queen({}, compression=2)):
        (folder / "queen.1c").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"queen\.1c is not the game's archive with speech in mp3"):
            list(speech_packages.amazon_queen(tmp_path, "en"))


def test_sky(tmp_path):
    folder = tmp_path / "usr/share/scummvm/game"
    folder.mkdir(parents=True)
    table, contents = sky([(60111, [1, 2], False), (50007, [0, 128, 255], False), (51000, [192] * 40, True)])
    (folder / "sky.dsk").write_bytes(contents)
    (folder / "sky.dnr").write_bytes(table)
    waves = {clip.id: soundfile.read(clip.file) for clip in speech_packages.steel_sky(tmp_path, "en")}
    assert {name: rate for name, (_, rate) in waves.items()} == {"50007": 11025, "51000": 11025}
    assert waves["50007"][0].tolist() == [-1.0, 0.0, 127 / 128] and waves["51000"][0].tolist() == [0.5] * 40
    (folder / "sky.dnr").write_bytes(table[:-1])
    with pytest.raises(ValueError, match=r"sky\.dnr is not the game's table of files"):
        list(speech_packages.steel_sky(tmp_path, "en"))
