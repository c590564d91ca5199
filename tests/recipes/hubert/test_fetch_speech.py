"""Fetching recorded speech: packages made here stand for Debian's."""

import gzip
import json
import shutil
import subprocess
from hashlib import sha256

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
from click.testing import CliRunner  # noqa: E402

from recipes.hubert import fetch_speech, speech_packages  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


def package(folder, name, files):
    """A package of some files, {path: bytes}: its .deb."""
    root = folder / "sources" / name
    for path, content in {"DEBIAN/control": _control(name), **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    deb = folder / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, deb], check=True, capture_output=True)
    return deb


def _control(name):
    return f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n".encode()


def ogg(folder, seconds=0.3, rate=22050):
    soundfile.write(folder / "x.ogg", np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)), rate)
    return (folder / "x.ogg").read_bytes()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The game's two packages; ``apt-get download`` copies them and is counted."""
    sound = ogg(tmp_path)
    share = "usr/share/games/fillets-ng"
    dialogs = 'dialogId("a-v-one", "font", "en")\ndialogStr("Říká \\"ano\\".")\n'
    debs = {
        "fillets-ng-data": package(
            tmp_path, "fillets-ng-data", {f"{share}/script/level/dialogs_cs.lua": dialogs.encode()}
        ),
        "fillets-ng-data-cs": package(
            tmp_path,
            "fillets-ng-data-cs",
            {
                f"{share}/sound/level/cs/a-v-one.ogg": sound,
                f"{share}/sound/level/cs/b-m-two.ogg": sound,
                f"{share}/sound/share/common/cs/c.ogg": sound,
                f"{share}/sound/level/cs/broken.ogg": sound[:40],
            },
        ),
    }
    pinned = {name: ("1", sha256(deb.read_bytes()).hexdigest()) for name, deb in debs.items()}
    monkeypatch.setattr(fetch_speech, "PACKAGES", pinned)
    downloads, run = [], fetch_speech._run

    def apt(*command, cwd=None):
        if command[0] != "apt-get":
            return run(*command, cwd=cwd)
        name = command[2].split("=")[0]
        downloads.append(name)
        shutil.copy(debs[name], cwd)

    monkeypatch.setattr(fetch_speech, "_run", apt)
    return downloads


def test_makes_recordings_and_a_manifest(fake, tmp_path):
    said = []
    manifest = fetch_speech.fetch(tmp_path / "speech", ["fillets-cs"], say=said.append)
    rows = {row["id"]: row for row in map(json.loads, manifest.read_text(encoding="utf-8").splitlines())}
    assert set(rows) == {"level/a-v-one", "level/b-m-two", "share/common/c"}
    assert rows["level/a-v-one"] == {
        "path": "fillets-cs/level__a-v-one.flac",
        "id": "level/a-v-one",
        "corpus": "fillets-cs",
        "language": "cs",
        "speaker": "fillets_cs_v",
        "text": 'Říká "ano".',
        "seconds": 0.3,
    }
    assert rows["level/b-m-two"]["text"] is None
    wave, rate = soundfile.read(tmp_path / "speech" / "fillets-cs" / "level__a-v-one.flac")
    assert (rate, wave.shape) == (16000, (4800,))
    assert "3 recordings" in said[-1] and "1 that cannot be decoded" in said[-1]


def test_goes_on_where_it_stopped(fake, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fetch_speech, "_write", lambda file, wave: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch_speech.fetch(tmp_path / "speech", ["fillets-cs"], say=str)
    assert not (tmp_path / "speech" / "manifest.jsonl").exists()
    fetch_speech.fetch(tmp_path / "speech", ["fillets-cs"], say=str)
    fetch_speech.fetch(tmp_path / "speech", ["fillets-cs"], say=str)
    assert fake == ["fillets-ng-data", "fillets-ng-data-cs"]  # each once


def test_another_package_is_refused(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch_speech.PACKAGES, "fillets-ng-data", ("1", "0" * 64))
    result = CliRunner().invoke(fetch_speech.main, [str(tmp_path / "speech"), "--only", "fillets-cs"])
    assert result.exit_code == 1
    assert "its sha256 differs" in result.output
    assert not list((tmp_path / "speech" / "packages").glob("*.deb"))


def test_packages_are_kept_only_when_asked(fake, tmp_path):
    for arguments, kept in (((), False), (("--keep-packages",), True)):
        place = tmp_path / f"speech{kept}"
        result = CliRunner().invoke(fetch_speech.main, [str(place), "--only", "fillets-cs", *arguments])
        assert result.exit_code == 0, result.output
        assert (place / "packages").exists() is kept
    assert CliRunner().invoke(fetch_speech.main, [str(tmp_path), "--only", "esperanto"]).exit_code == 2


def test_commands_that_are_missing_or_fail():
    with pytest.raises(FileNotFoundError, match="no-such-command is missing: this needs a Debian system"):
        fetch_speech._run("no-such-command")
    with pytest.raises(OSError, match="dpkg-deb -x nothing here failed: .*apt-get update"):
        fetch_speech._run("dpkg-deb", "-x", "nothing", "here")


def test_prompts(tmp_path):
    codec = pytest.importorskip("G722")
    tone = (8000 * np.sin(np.arange(16000) / 5)).astype(np.int16)
    sounds, documents = tmp_path / "usr/share/asterisk/sounds/en_US_f", tmp_path / "usr/share/doc/sounds"
    for name in ("hello", "silence/1", "beep"):
        (sounds / name).parent.mkdir(parents=True, exist_ok=True)
        (sounds / f"{name}.g722").write_bytes(codec.G722(16000, 64000).encode(tone))
    documents.mkdir(parents=True)
    lines = "; comment: no\nhello: Hello: you.\nsilence/1: (1 second)\nbeep: [a beep]\n"
    (documents / "core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    clips = {clip.id: clip for clip in speech_packages.asterisk(tmp_path, "en")}
    assert {name: clip.text for name, clip in clips.items()} == {
        "hello": "Hello: you.",
        "silence/1": None,
        "beep": None,
    }
    assert fetch_speech._decode(clips["hello"].file).shape == (16000,)


def test_stamps(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    for name in ("animals/cat_desc", "animals/cat_desc_pt_BR", "animals/cat", "symbols/math/7_el"):
        (stamps / name).parent.mkdir(parents=True, exist_ok=True)
        (stamps / f"{name}.ogg").write_bytes(b"")
    (stamps / "animals/cat.txt").write_text("A cat.\npt_BR.utf8=Um gato.\n", encoding="utf-8")
    clips = {clip.id: (clip.language, clip.text) for clip in speech_packages.tuxpaint(tmp_path, "")}
    assert clips == {
        "animals/cat_desc": ("en", "A cat."),
        "animals/cat_desc_pt_BR": ("pt_BR", "Um gato."),
        "symbols/math/7_el": ("el", None),
    }
