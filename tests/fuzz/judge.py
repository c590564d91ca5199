"""What may become of a damaged checkpoint: one short sentence, or a model that runs; nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import warnings
from collections import Counter
from pathlib import Path

import torch

import bitquant
from bitquant.metadata import digest
from bitquant.skeleton import build_skeleton
from tests.fuzz.mutations import change_config, change_weights
from tests.fuzz.subjects import Subject, answer

SECONDS = 20  # what takes longer hangs
LONGEST = 1000
# of a model that its author made so: numbers that overflow, and attention for other scores than its module's
SAID = ("NaN", "was packed for score scale")


class Fault(AssertionError):
    """What must not happen."""


def fuzz(subjects: list[Subject], directory: Path, seed: int, more) -> Counter:
    """Damages checkpoints while ``more(count)`` says so; the number of each outcome.

    Raises:
        Fault: with the number of the mutation, by which ``fuzz_one`` repeats it.
    """
    outcomes, number = Counter(), seed
    while more(number - seed):
        try:
            outcomes[fuzz_one(subjects, directory, number)] += 1
        except Fault as fault:
            raise Fault(f"mutation {number}: {fault}") from fault.__cause__
        number += 1
    return outcomes


def fuzz_one(subjects: list[Subject], directory: Path, number: int) -> str:
    """The outcome of mutation ``number``, the same each time."""
    rng = random.Random(number)
    subject = rng.choice(subjects)
    config, weights = subject.config, subject.weights
    if rng.random() < 0.8:
        config = change_config(config, rng)
    else:
        weights = change_weights(weights, rng)
    (directory / "bitquant.safetensors").write_bytes(weights)
    resealed = rng.random() < 0.7 and isinstance(config.get("quantization_config"), dict)
    if resealed:
        config["quantization_config"]["sha256"] = digest(config, directory / "bitquant.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    with _limited(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = _outcome(subject, directory, config, resealed)
    if os.environ.pop("BITQUANT_FUZZ_RAN", None):
        raise Fault(f"{subject.name}: a name of the file was run")
    return outcome


def _outcome(subject, directory, config, resealed):
    try:
        model = bitquant.load(directory, model=subject.model)
    except ValueError as error:
        _sentence(error)
        return "refused"
    except Exception as error:
        raise Fault(f"{subject.name}: load raised {type(error).__name__}: {str(error)[:300]}") from error
    try:
        out = answer(model, subject.inputs)
    except Exception as error:
        if not resealed:
            raise Fault(f"{subject.name}: loaded, and the first call failed: {str(error)[:300]}") from error
        if isinstance(error, ValueError | RuntimeError) and any(words in str(error) for words in SAID):
            _sentence(error)
            return "another model, which refuses its input"
        if _float_fails(subject, config):
            return "another model, of which the float one fails too"
        raise Fault(f"{subject.name}: resealed, and the first call failed: {str(error)[:300]}") from error
    if out.shape == subject.expected.shape and torch.equal(out, subject.expected):
        return "equal"
    if not resealed:
        raise Fault(f"{subject.name}: loaded with its digest left alone, and gave other outputs")
    return "another model"  # whoever writes both files may write any model that there is


def _float_fails(subject, config):
    """Whether the float model of the same configuration cannot be called either: then nothing of ours is at fault."""
    if subject.model is not None:
        return False
    model = build_skeleton(config, tensors=10**3, elements=10**7).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.fill_(0.5)
    try:
        answer(model, subject.inputs)
    except Exception:
        return True
    return False


def _sentence(error):
    text = str(error)
    if "\n" in text or not 0 < len(text) < LONGEST:
        raise Fault(f"load said {len(text)} characters in {text.count(chr(10)) + 1} lines: {text[:300]!r}")


@contextlib.contextmanager
def _limited():
    """A hang becomes a Fault, where the platform has alarms."""

    def stop(*_):
        raise Fault(f"it took longer than {SECONDS} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
