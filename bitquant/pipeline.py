"""The whole path for one text encoder: swap, calibrate, distil, pack, save, and measure in a fresh process."""

import copy
import time
from itertools import islice
from pathlib import Path

from bitquant.checkpoint import check_target, save
from bitquant.convert import convert_
from bitquant.coverage import report
from bitquant.data import TextBatches, hold_out
from bitquant.distillation import distill
from bitquant.fidelity import embed, fidelity
from bitquant.fresh import measure_fresh
from bitquant.measure import megabytes
from bitquant.quantize import calibrate_, quantize_
from bitquant.sources import weight_files

MOST_HELD_OUT = 1000
CALIBRATION_BATCHES = 8


def binarize(
    source,
    sentences,
    out,
    config,
    *,
    steps,
    batch_size=32,
    max_length=128,
    seed=0,
    overwrite=False,
    progress=None,
    say=lambda line: None,
):
    """Turns a float model into a saved 1-bit one and measures it. What can fail early does, before training.

    Args:
        source (Source): the float model, which becomes the teacher.
        sentences (list[str]): training and held-out data together; a tenth is held out.
        out (str or Path): directory of the checkpoint.
        config (QuantConfig): what to binarize and how.
        steps (int): distillation steps; 0 leaves the student as calibrated.
        batch_size (int), max_length (int): of training and of the held-out embeddings, in sentences and tokens.
        seed (int): order of the batches and all other randomness.
        overwrite (bool): replace an earlier checkpoint at ``out``.
        progress (callable, optional): gets a dict of numbers at every step.
        say (callable): gets one line of text at every stage.

    Returns:
        dict: JSON-able; sizes in MB, times in milliseconds, fidelity, share of MACs binarized, what stayed float.
    """
    started = time.perf_counter()
    check_target(out, overwrite=overwrite)
    train, held_out = hold_out(sentences)
    train = train[: max(steps, CALIBRATION_BATCHES) * batch_size]  # in hash order a prefix is a fair sample
    held_out = sorted(held_out[:MOST_HELD_OUT], key=len)
    example = source.example_inputs()
    max_length = min(max_length, source.longest() or max_length)
    teacher, student = source.model, copy.deepcopy(source.model)
    quantize_(student, config, example)

    def embeddings(model):
        return embed(model, TextBatches(source.tokenizer, held_out, batch_size=batch_size, max_length=max_length))

    say(f"{len(train):,} training sentences, {len(held_out):,} held out; calibrating")
    batches = TextBatches(source.tokenizer, train, batch_size=batch_size, max_length=max_length, seed=seed)
    calibrate_(student, islice(batches, CALIBRATION_BATCHES))
    expected = embeddings(teacher)
    undistilled = fidelity(expected, embeddings(student))
    if steps:
        distill(student, teacher, batches, steps=steps, seed=seed, progress=progress)
    student.eval()
    trained = embeddings(student)
    trained_after = time.perf_counter() - started
    say("packing and saving")
    coverage = report(student, example).to_dict()
    convert_(student)
    save(student, out, tokenizer_file=source.tokenizer.file, overwrite=overwrite)
    say("measuring in a fresh process")
    fresh = measure_fresh(
        out,
        source.directory,
        held_out,
        teacher=expected,
        student=trained,
        batch_size=batch_size,
        max_length=max_length,
    )
    return {
        "model": str(source.directory),
        "out": str(out),
        "config": config.to_dict(),
        "steps": steps,
        "seed": seed,
        "sentences": {"training": len(train), "held_out": len(held_out)},
        "megabytes": _sizes(source, out),
        "milliseconds": fresh["milliseconds"],
        "fidelity": {"undistilled": undistilled, "distilled": fresh["fidelity"]},
        "identical_after_reload": fresh["identical"],
        "coverage": coverage,
        "seconds": {"training": trained_after, "total": time.perf_counter() - started},
    }


def _sizes(source, out):
    """MB of the weights file and of all that loading needs, before and after."""
    return {
        "weights": {"before": megabytes(weight_files(source.directory)), "after": megabytes(weight_files(out))},
        "directory": {"before": megabytes(source.files()), "after": megabytes(Path(out).iterdir())},
    }
