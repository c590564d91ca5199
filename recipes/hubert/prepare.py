"""A folder of audio -> a manifest: ``python -m recipes.hubert.prepare AUDIO_DIR [--out DATA_DIR]``.

Recognises LibriSpeech, Speech Commands and what ``fetch_speech`` writes; takes any other tree of wav, flac and ogg.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
from tabulate import tabulate

from bitquant.data.audio import check_audio
from bitquant.data.split import hold_out

from .data.layouts import Recording, find_recordings
from .data.manifest import RATE, SPLITS, Utterance, write_manifest
from .progress import watched

BUCKETS = (0, 1, 2, 4, 8, 16)  # seconds


def prepare(
    audio: Path,
    out: Path,
    *,
    held_out: float = 0.1,
    transcribed: bool = False,
    say: Callable[[str], None] = print,
    watch: Callable[[Iterable, int], Iterable] = lambda items, count: items,
) -> list[Utterance]:
    """Reads every recording once and writes ``out/manifest.jsonl``.

    Args:
        audio: the folder. out: made if needed. held_out: share for validation where the corpus does not say which, by
            a hash of each name. say: gets a line of text for each file that is skipped, and about the layout.
        transcribed: leave out what has no transcript, such as noises.
        watch: wraps the recordings while they are read, for a progress bar.

    Raises:
        ValueError: no recordings, none that can be used, two of one name, or too few to hold any out.
    """
    layout, recordings = find_recordings(audio)
    say(f"{len(recordings)} recordings, layout: {layout}")
    if transcribed:
        recordings = [r for r in recordings if r.text]
        say(f"{len(recordings)} of them have a transcript")
    if repeated := [name for name, count in Counter(r.id for r in recordings).items() if count > 1]:
        raise ValueError(f"two recordings are called {repeated[0]}: rename one")
    usable = []
    with ThreadPoolExecutor() as pool:
        checked = pool.map(_check, recordings)
        for recording, (seconds, problem) in zip(recordings, watch(checked, len(recordings)), strict=True):
            if problem:
                say(f"skipped {recording.file}: {problem}")
            else:
                usable.append((recording, seconds))
    if not usable:
        raise ValueError(f"none of the {len(recordings)} recordings in {audio} can be used")
    utterances = [_utterance(recording, seconds) for recording, seconds in usable]
    if not any(u.split == "valid" for u in utterances):
        utterances = _split(utterances, held_out)
    write_manifest(out, utterances)
    return utterances


def _check(recording: Recording) -> tuple[float, str | None]:
    try:
        return check_audio(recording.file), None
    except ValueError as error:
        return 0.0, str(error)


def _utterance(recording: Recording, seconds: float) -> Utterance:
    return Utterance(recording.id, recording.file.resolve(), round(seconds * RATE), recording.split or "train",
                     recording.speaker, recording.text, recording.phones)  # fmt: skip


def _split(utterances: list[Utterance], share: float) -> list[Utterance]:
    train = [u.id for u in utterances if u.split == "train"]
    valid = set(hold_out(train, share, key=str, unit="recordings")[1])
    return [replace(u, split="valid") if u.id in valid else u for u in utterances]


def summary(utterances: list[Utterance]) -> str:
    """Tables of splits and of lengths."""
    splits = [
        (split, len(part), sum(u.seconds for u in part) / 3600, len({u.speaker for u in part if u.speaker}) or None,
         sum(u.text is not None for u in part))
        for split in SPLITS if (part := [u for u in utterances if u.split == split])
    ]  # fmt: skip
    edges = [*BUCKETS, float("inf")]
    lengths = [
        (f"{low} - {high} s" if high < float("inf") else f"{low} s and more", len(part),
         sum(u.seconds for u in part) / 3600)
        for low, high in zip(edges, edges[1:], strict=False)
        if (part := [u for u in utterances if low <= u.seconds < high])
    ]  # fmt: skip
    first = tabulate(splits, ("split", "utterances", "hours", "speakers", "with text"), floatfmt=".2f")
    return first + "\n\n" + tabulate(lengths, ("length", "utterances", "hours"), floatfmt=".2f")


@click.command()
@click.argument("audio", type=click.Path(file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Default: AUDIO/prepared.")
@click.option("--held-out", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, show_default=True,
              help="Share for validation where the corpus does not say.")  # fmt: skip
@click.option("--transcribed", is_flag=True, help="Leave out what has no transcript.")
def main(audio: Path, out: Path | None, held_out: float, transcribed: bool) -> None:
    """Make the manifest of the recordings below AUDIO."""
    out = out or audio / "prepared"
    try:
        say = partial(click.echo, err=True)
        utterances = prepare(audio, out, held_out=held_out, transcribed=transcribed, say=say, watch=watched)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(summary(utterances))
    click.echo(f"wrote {out / 'manifest.jsonl'}")


if __name__ == "__main__":
    main()
