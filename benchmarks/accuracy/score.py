"""Error rates of float and binarized speech encoders on recordings that no training has seen.

    python -m benchmarks.accuracy.score whisper --weights DIR --data SPEECH/asterisk-en [CHECKPOINT ...] [--part P]

SPEECH is made by ``python -m recipes.hubert.fetch_speech``, DIR by ``python -m benchmarks.accuracy.whisper`` or
``.hama``. Scored are, unless ``--part`` says otherwise, those recordings that ``bitquant quantize`` holds out of the
same folder; of these the ones up to 10 seconds whose text has no digits. Whisper is scored in words against the text,
as they are and normalised; hama in phones against the text's pronunciation by the package's dictionary model, both
without spaces and with the vowels merged that its labels mix up.
"""

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import jiwer
import torch
from tabulate import tabulate
from torch import nn

import bitquant
from bitquant.data import read_data
from bitquant.data.recordings import Recordings
from bitquant.sources import Source, open_source

LONGEST = 10.0  # seconds; what does not fit a shorter window of Whisper would be cut
MERGED = str.maketrans({"ɔ": "a", "ɑ": "a", "ʌ": "ə", "ɾ": "t", "͡": None, " ": None, "ː": None})
BATCH = 16  # recordings at once, where a model takes several lengths


class Recogniser(NamedTuple):
    """What an encoder is heard to say in a batch, and how wrong that is: ``measures[name](texts, heard)``."""

    hear: Callable[[nn.Module, dict], list[str]]
    measures: dict[str, Callable[[list[str], list[str]], float]]


def words(text: str) -> str:
    """Lower case, without punctuation, white space collapsed."""
    return " ".join(re.sub(r"[^\w\s']", " ", text.casefold()).split())


def whisper(source: Source) -> Recogniser:
    """Texts by Whisper's decoder.

    Words are compared as they are, and as the paper of Whisper compares them (appendix C): numbers and contractions
    written alike, so that "fifteen" is "15".
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    from benchmarks.accuracy.whisper import pretrained, tokenizer, transcribe

    decoder, tokens, normalise = pretrained(), tokenizer(), EnglishTextNormalizer({})

    def hear(encoder: nn.Module, batch: dict) -> list[str]:
        return [tokens.decode(row) for row in transcribe(decoder, encoder(**batch).last_hidden_state)]

    def word_error(written: Callable[[str], str], texts: list[str], heard: list[str]) -> float:
        return jiwer.wer([written(text) for text in texts], [written(text) for text in heard])

    measures = {"word error rate": words, "normalised word error rate": normalise}
    return Recogniser(hear, {name: partial(word_error, written) for name, written in measures.items()})


def pronunciation() -> Callable[[str], str]:
    """The phones of a text, by the dictionary model of hama's package."""
    from hama.inference import G2PModel

    model = G2PModel()
    return lambda text: model.predict(words(text)).ipa.translate(MERGED)


def hama(source: Source) -> Recogniser:
    """Phones, compared with the pronunciation of the text."""
    from benchmarks.accuracy.hama import labels, phones

    names, pronounce = labels(), pronunciation()

    def hear(encoder: nn.Module, batch: dict) -> list[str]:
        return [phones(logits, names).translate(MERGED) for logits in encoder(**batch)["logits"]]

    def phone_error(texts: list[str], heard: list[str]) -> float:
        return jiwer.cer([pronounce(text) for text in texts], heard)

    return Recogniser(hear, {"phone error rate": phone_error})


MODELS = {"whisper": whisper, "hama": hama}


def texts(data: Path) -> dict[str, str]:
    """What is said in the recordings of a folder, where it follows from the text: digits are read in several ways."""
    lines = (data.parent / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["text"] and not re.search(r"\d", row["text"])]
    return {row["path"].removeprefix(f"{data.name}/"): row["text"] for row in rows}


def parts(recordings: Recordings) -> dict[str, list[str]]:
    """Names of recordings: ``test`` is what ``bitquant quantize`` holds out, ``dev`` as many of the others."""
    rest, test = recordings.split()
    return {"test": test, "dev": rest[: len(test)], "train": rest[len(test) :], "all": recordings.samples}


def scorable(recordings: Recordings, data: Path, part: str) -> dict[str, str]:
    """Recordings of a part, at most ``LONGEST``, in the order of their names, and the text that is to be heard."""
    known = texts(data)
    names, _ = recordings.usable(sorted(name for name in parts(recordings)[part] if words(known.get(name, ""))))
    return {name: known[name] for name in names if recordings.seconds[name] <= LONGEST}


@torch.no_grad()
def score(source: Source, models: dict[str, nn.Module], data: Path, kind: str, *, part: str = "test") -> dict:
    """Error rates of several encoders over the same recordings.

    Args:
        source: the float model, whose inputs all take.
        models: by name.
        data: folder of recordings inside one with a ``manifest.jsonl``.
        kind: key of ``MODELS``.
        part: key of ``parts``.

    Returns:
        JSON-able: the number of recordings and seconds, and for each model its ``errors`` by measure and seconds.
    """
    recordings, results = read_data(data, source, max_seconds=LONGEST), {}
    recogniser = MODELS[kind](source)
    said = scorable(recordings, data, part)
    for label, model in models.items():
        start = time.perf_counter()
        batches = recordings.batches(list(said), batch_size=BATCH)
        heard = [text for batch in batches for text in recogniser.hear(model, batch)]
        seconds = time.perf_counter() - start
        errors = {name: measure(list(said.values()), heard) for name, measure in recogniser.measures.items()}
        results[label] = {"errors": errors, "seconds": seconds}
    total = sum(recordings.seconds[name] for name in said)
    return {"recordings": len(said), "audio_seconds": total, "models": results}


@click.command()
@click.argument("kind", type=click.Choice(list(MODELS)))
@click.argument("checkpoints", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", required=True, type=click.Path(exists=True, path_type=Path), help="DIR of the loader.")
@click.option("--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--part", type=click.Choice(["test", "dev", "train", "all"]), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(kind, checkpoints, weights, data, part, as_json):
    """Score the float model and CHECKPOINTS (students or packed) of it."""
    source = open_source(f"benchmarks.accuracy.{kind}:encoder", weights / "model.safetensors")
    models = {"float": source.model}
    models |= {str(folder): bitquant.load(folder, model=source.model) for folder in checkpoints}
    result = score(source, models, data.resolve(), kind, part=part)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    measures = next(iter(result["models"].values()))["errors"]
    rows = [
        (name, *(f"{error:.1%}" for error in found["errors"].values()), f"{found['seconds']:.1f}")
        for name, found in result["models"].items()
    ]
    click.echo(f"{result['recordings']} recordings, {result['audio_seconds']:.0f} s")
    click.echo(tabulate(rows, headers=("", *measures, "seconds")))


if __name__ == "__main__":
    main()
