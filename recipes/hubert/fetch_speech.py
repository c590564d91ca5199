"""Real recorded speech from Debian packages: 16 kHz mono FLAC and a manifest with what is said.

``python -m recipes.hubert.fetch_speech DIR --only asterisk-en`` needs ``apt-get`` and ``dpkg-deb`` (nothing is
installed, root is not needed) and ``pip install 'bitquant-torch[recipes]'``. Run again, it goes on where it stopped.
The recordings keep the licences of their packages (GPL-2, CC-BY-SA-3.0, CC-BY-3.0).
"""

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import click
import numpy as np
import soundfile

from bitquant.atomic import replacing_file
from bitquant.data.audio import read_audio

RATE = 16000
PACKAGES = {  # name: (version, sha256)
    "asterisk-core-sounds-en-g722": ("1.6.1-1", "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"),
    "asterisk-core-sounds-en": ("1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
    "asterisk-core-sounds-es-g722": ("1.6.1-1", "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8"),
    "asterisk-core-sounds-es": ("1.6.1-1", "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74"),
    "asterisk-core-sounds-fr-g722": ("1.6.1-1", "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0"),
    "asterisk-core-sounds-fr": ("1.6.1-1", "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"),
    "asterisk-core-sounds-it-g722": ("1.6.1-1", "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016"),
    "asterisk-core-sounds-it": ("1.6.1-1", "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b"),
    "asterisk-core-sounds-ru-g722": ("1.6.1-1", "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b"),
    "asterisk-core-sounds-ru": ("1.6.1-1", "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab"),
    "fillets-ng-data": ("1.0.1-1.1", "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84"),
    "fillets-ng-data-cs": ("1.0.1-1.1", "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14"),
    "fillets-ng-data-nl": ("1.0.1-1.1", "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10"),
    "tuxpaint-stamps-default": ("2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),
}


@dataclass
class Clip:
    """One recording in a package; ``text`` is None where nobody wrote down what is said, or nothing is."""

    id: str
    file: Path
    language: str
    speaker: str
    text: str | None


def asterisk(root: Path, language: str) -> Iterator[Clip]:
    """Telephone prompts, one professional speaker a language, G.722 at 16 kHz."""
    (document,) = (root / "usr/share/doc").glob(f"*/core-sounds-{language}.txt*")
    content = gzip.decompress(document.read_bytes()) if document.suffix == ".gz" else document.read_bytes()
    lines = (line for line in content.decode("utf-8-sig").splitlines() if ":" in line and not line.startswith(";"))
    texts = {key.strip(): text.strip() for key, text in (line.split(":", 1) for line in lines)}
    (speaker,) = (root / "usr/share/asterisk/sounds").iterdir()
    for file in sorted(speaker.rglob("*.g722")):
        name = file.relative_to(speaker).with_suffix("").as_posix()
        text = texts.get(name)
        spoken = text and not text.startswith("[") and not name.startswith("silence/")  # "[tone]" and its kind
        yield Clip(name, file, language, speaker.name, text if spoken else None)


def fillets(root: Path, language: str) -> Iterator[Clip]:
    """Dialogues of a game, two leading voices and others, ogg."""
    game = root / "usr/share/games/fillets-ng"
    pattern = re.compile(r'dialogId\("([^"]+)".*?\)\s*\n\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')

    @cache
    def texts(level: str) -> dict[str, str]:
        script = game / "script" / level / f"dialogs_{language}.lua"
        found = pattern.findall(script.read_text(encoding="utf-8")) if script.exists() else []
        return {name: text.replace('\\"', '"') for name, text in found}

    for file in sorted((game / "sound").glob(f"**/{language}/**/*.ogg")):
        level = file.relative_to(game / "sound").as_posix().split(f"/{language}/")[0]
        voice = re.search(r"-([vm])-", file.stem)
        speaker = f"fillets_{language}_{voice[1] if voice else 'other'}"
        yield Clip(f"{level}/{file.stem}", file, language, speaker, texts(level).get(file.stem))


def tuxpaint(root: Path, _: str) -> Iterator[Clip]:
    """Names of drawn things in many languages, about one speaker each, ogg."""
    stamps = root / "usr/share/tuxpaint/stamps"

    @cache
    def texts(stem: str) -> dict[str, str]:
        file = stamps / f"{stem}.txt"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        translated = (re.match(r"([\w@]+)\.utf8=(.*)", line.strip()) for line in lines[1:])
        return {"en": lines[0].strip() if lines else None, **{m[1]: m[2] for m in translated if m}}

    for file in sorted(stamps.rglob("*.ogg")):
        name = file.relative_to(stamps).with_suffix("").as_posix()
        described = re.fullmatch(r"(.*?)_desc(?:_([a-zA-Z_]+))?", name)
        symbol = re.fullmatch(r"(symbols/.*?)_([a-z]{2}(?:_[A-Za-z]{2})?)", name)
        if found := described or symbol:  # the others are noises
            language = found[2] or "en"
            yield Clip(name, file, language, f"tuxpaint_{language}", texts(found[1]).get(language))


@dataclass
class Corpus:
    """Packages, and how their clips are found: ``read(root, language)``."""

    packages: tuple[str, ...]
    read: Callable[[Path, str], Iterator[Clip]]
    language: str = ""


def _prompts(code: str) -> Corpus:
    return Corpus((f"asterisk-core-sounds-{code}-g722", f"asterisk-core-sounds-{code}"), asterisk, code)


CORPORA = {
    **{f"asterisk-{code}": _prompts(code) for code in ("en", "es", "fr", "it", "ru")},
    "fillets-cs": Corpus(("fillets-ng-data", "fillets-ng-data-cs"), fillets, "cs"),
    "fillets-nl": Corpus(("fillets-ng-data", "fillets-ng-data-nl"), fillets, "nl"),
    "tuxpaint": Corpus(("tuxpaint-stamps-default",), tuxpaint),
}


def fetch(directory: Path, names: list[str], *, say: Callable[[str], None] = print) -> Path:
    """Makes ``directory/CORPUS/*.flac`` and ``directory/manifest.jsonl`` of all corpora that are there.

    Args:
        directory: made if needed; what is complete in it is not made again.
        names: keys of ``CORPORA``.
        say: gets one line of text for each corpus.

    Returns:
        The manifest: one JSON object a line with path, id, corpus, language, speaker, text and seconds.

    Raises:
        FileNotFoundError: apt-get or dpkg-deb is missing.
        OSError: a package cannot be downloaded.
        ValueError: a package is not the one its sha256 stands for.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        part = directory / f"{name}.jsonl"
        if not part.exists():
            _make(directory, name, part, say)
    parts = (directory / f"{name}.jsonl" for name in CORPORA)
    manifest = directory / "manifest.jsonl"
    _replace(manifest, "".join(part.read_text(encoding="utf-8") for part in parts if part.exists()))
    return manifest


def _make(directory: Path, name: str, part: Path, say: Callable[[str], None]) -> None:
    corpus, root = CORPORA[name], directory / "packages" / f"{name}.tmp"
    shutil.rmtree(root, ignore_errors=True)
    for package in corpus.packages:
        _run("dpkg-deb", "-x", str(_download(directory / "packages", package, say)), str(root))
    lines, seconds, skipped = [], 0.0, 0
    for clip in corpus.read(root, corpus.language):
        try:
            wave = _decode(clip.file)
        except (soundfile.LibsndfileError, OSError):
            skipped += 1
            continue
        file = directory / name / f"{clip.id.replace('/', '__')}.flac"
        _write(file, wave)
        row = {"path": file.relative_to(directory).as_posix(), "id": clip.id, "corpus": name}
        row |= {"language": clip.language, "speaker": clip.speaker, "text": clip.text}
        lines.append(json.dumps({**row, "seconds": round(len(wave) / RATE, 3)}, ensure_ascii=False) + "\n")
        seconds += len(wave) / RATE
    _replace(part, "".join(lines))
    shutil.rmtree(root)
    lost = f", {skipped} that cannot be decoded left out" if skipped else ""
    say(f"{name}: {len(lines)} recordings, {seconds / 3600:.2f} h{lost}")


def _download(folder: Path, package: str, say: Callable[[str], None]) -> Path:
    version, digest = PACKAGES[package]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{package}_{version}_all.deb"
    if not _is(file, digest):
        file.unlink(missing_ok=True)  # half of one, perhaps
        say(f"downloading {package} {version}")
        _run("apt-get", "download", f"{package}={version}", cwd=folder)
        if not _is(file, digest):
            file.unlink(missing_ok=True)
            raise ValueError(f"{file.name} is not the published package: its sha256 differs; it was removed")
    return file


def _is(file: Path, digest: str) -> bool:
    return file.exists() and sha256(file.read_bytes()).hexdigest() == digest


def _decode(file: Path) -> np.ndarray:
    """float32 (T,) at ``RATE``."""
    if file.suffix != ".g722":
        return read_audio(file, RATE)
    import G722

    return np.asarray(G722.G722(RATE, 64000).decode(file.read_bytes()), dtype=np.float32) / 32768


def _write(file: Path, wave: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.clip(wave, -1, 1), RATE, subtype="PCM_16")


def _replace(file: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    with replacing_file(file) as fresh:
        fresh.write_text(text, encoding="utf-8")


def _run(*command: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{command[0]} is missing: this needs a Debian system, or a container of one") from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise OSError(f"{' '.join(command)} failed: {reason}; does apt-get update help?")


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(CORPORA)), help="A corpus; several times for more.")
@click.option("--keep-packages", is_flag=True, help="Keep the downloaded packages too.")
def main(directory: Path, only: tuple[str, ...], keep_packages: bool) -> None:
    """Fetch recorded speech into DIRECTORY: 8.4 hours in 24 languages, or part of it."""
    try:
        manifest = fetch(directory, list(only or CORPORA), say=click.echo)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if not keep_packages:
        shutil.rmtree(directory / "packages", ignore_errors=True)
    click.echo(f"wrote {manifest}")


if __name__ == "__main__":
    main()
