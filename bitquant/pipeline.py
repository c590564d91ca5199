"""The whole path for one encoder: swap, calibrate, distil, pack, save, and measure in a fresh process."""

import copy
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from bitquant.checkpoint import check_target, digest_file, is_checkpoint, save
from bitquant.convert import convert_
from bitquant.coverage import report
from bitquant.distillation import distill
from bitquant.distillation.state import seconds_trained
from bitquant.fidelity import fidelity, outputs
from bitquant.fresh import measure_fresh
from bitquant.measure import megabytes
from bitquant.quantize import calibrate_, quantize_
from bitquant.record import record_of
from bitquant.reservation import reserved
from bitquant.sources import PREPROCESSOR, TOKENIZER, weight_files
from bitquant.training_directory import TrainingDirectory, digest

CALIBRATION_BATCHES = 8
SKIPPED_SHOWN = 5


def binarize(
    source,
    data,
    out,
    config,
    *,
    steps,
    batch_size=None,
    seed=0,
    overwrite=False,
    resume=False,
    progress=None,
    say=lambda line: None,
    trained=lambda student: None,
    teacher=None,
    **training,
):
    """Turns a float model into a saved 1-bit one and measures it. What can fail early does, before training.

    While it trains, ``OUT.training`` beside the output holds all that ``resume`` needs; it is gone when the saved model
    is measured. Another process that writes to ``OUT`` is refused meanwhile.

    Args:
        source (Source): the float model.
        data (Data): training and held-out samples together; a tenth is held out.
        out (str or Path): directory of the checkpoint.
        config (QuantConfig): what to binarize and how.
        steps (int): distillation steps of each stage; 0 leaves the student as calibrated.
        batch_size (int, optional): of training and of the held-out outputs. Default: the data's own.
        seed (int): order of the batches and all other randomness.
        overwrite (bool): replace an earlier checkpoint at ``out``.
        resume (bool): go on with an unfinished training, if there is one. Where it was over and saved, measure.
        progress (callable, optional): gets a dict of numbers at every step.
        say (callable): gets one line of text at every stage.
        trained (callable): gets the student, in eval mode, before it is packed.
        teacher (nn.Module, optional): gives what the student learns, the same after ``resume``. Default: the float
            model.
        training: further options of ``distill``: ``chain``, ``stage_teacher``, ``lr`` and others.

    Returns:
        dict: JSON-able; sizes in MB, times in milliseconds, fidelity, share of MACs binarized, what stayed float.
    """
    started, earlier = time.perf_counter(), 0.0
    with claimed(out, overwrite=overwrite, resume=resume) as unfinished:
        batch_size = batch_size or data.batch_size
        everything, held_out = data.split()
        run = {
            "model": digest(map(digest_file, source.weights)),
            "data": digest(map(data.key, everything)),
            "config": config.to_dict(),
            "batch_size": batch_size,
            "max_length": data.max_length,
            "max_seconds": data.max_seconds,
        }
        # in hash order a prefix is a fair sample
        train, skipped = _usable(data, everything[: max(steps, CALIBRATION_BATCHES) * batch_size], say)
        held_out, more = _usable(data, held_out[: data.most_held_out], say)
        held_out = data.in_order(held_out)
        example = data.example_inputs(train)
        student = copy.deepcopy(source.model)
        quantize_(student, config, example)

        def answers(model):
            return outputs(model, data.batches(held_out, batch_size=batch_size))

        say(f"{len(train):,} training {data.unit}, {len(held_out):,} held out; calibrating")
        batches = data.batches(train, batch_size=batch_size, seed=seed)
        calibrate_(student, islice(batches, CALIBRATION_BATCHES))
        expected = answers(source.model)
        undistilled = fidelity(expected, answers(student))

        def tell(state):
            if progress is not None:  # the trainer counts the samples of a waveform as tokens
                progress({key: value for key, value in state.items() if key != "tokens_per_s" or data.kind == "text"})

        try:
            if steps:
                unfinished.begin(run, resume=resume)
                if resume:
                    earlier = seconds_trained(unfinished.path)
                    say("going on" if unfinished.started else "there is no unfinished training; starting")
                distill(
                    student,
                    source.model if teacher is None else teacher,
                    batches,
                    steps=steps,
                    seed=seed,
                    checkpoint=unfinished.path,
                    resume=resume,
                    progress=tell,
                    **training,
                )
                unfinished.finish()
            answered = answers(student.eval())
            trained_after = earlier + time.perf_counter() - started
            trained(student)
            say("packing and saving")
            coverage = report(student, example).to_dict()
            convert_(student)
            _save(student, out, source, unfinished, overwrite=overwrite)
            say("measuring in a fresh process")
            fresh = measure_fresh(
                out, source, data, held_out, teacher=expected, student=answered, batch_size=batch_size
            )
        except BaseException as error:
            unfinished.leave()
            if unfinished.started and not isinstance(error, (ValueError, FloatingPointError)):
                say(f"the training so far is in {unfinished.path}: the same command with --resume goes on from there")
            raise
        unfinished.remove()
    return {
        "model": source.name,
        "out": str(out),
        "config": record_of(student).config.to_dict(),
        "steps": steps,
        "seed": seed,
        "data": {
            "kind": data.kind,
            "unit": data.unit,
            "training": len(train),
            "held_out": len(held_out),
            "skipped": [{"name": name, "reason": reason} for name, reason in skipped + more],
        },
        "megabytes": _sizes(source, out),
        "milliseconds": fresh["milliseconds"],
        "fidelity": {"undistilled": undistilled, "distilled": fresh["fidelity"]},
        "identical_after_reload": fresh["identical"],
        "coverage": coverage,
        "seconds": {"training": trained_after, "total": earlier + time.perf_counter() - started},
    }


@contextmanager
def claimed(out, *, overwrite, resume):
    """Has an output directory for this process alone, and yields its TrainingDirectory.

    Raises:
        BlockingIOError: another process has it.
        FileExistsError: something is in the way. What a training that is over has saved is not, when it is resumed.
        OSError: the directory cannot be written.
    """
    with reserved(out):
        unfinished = TrainingDirectory(out)
        saved = resume and unfinished.trained and is_checkpoint(out)
        check_target(out, overwrite=overwrite or saved)
        unfinished.check(resume=resume, overwrite=overwrite)
        yield unfinished


def _save(student, out, source, unfinished, *, overwrite):
    """Saves the packed model, or finds that it stands there already, where a run was killed after its save."""
    files = {"tokenizer_file": source.file(TOKENIZER), "preprocessor_file": source.file(PREPROCESSOR)}
    if overwrite or not is_checkpoint(out):
        save(student, out, factory=source.factory, overwrite=overwrite, **files)
        return
    again = unfinished.path / "result"
    save(student, again, factory=source.factory, overwrite=True, **files)
    # it holds the digest of the weights too
    if (again / "config.json").read_bytes() != (Path(out) / "config.json").read_bytes():
        raise FileExistsError(
            f"output {out} exists and is not what the training in {unfinished.path} gives: overwrite it (--overwrite)"
        )


def _usable(data, samples, say):
    """The samples that can be used, at least two; those that cannot are named."""
    kept, skipped = data.usable(samples)
    if skipped:
        shown = "; ".join(f"{name}: {reason}" for name, reason in skipped[:SKIPPED_SHOWN])
        more = f"; and {len(skipped) - SKIPPED_SHOWN} more" if len(skipped) > SKIPPED_SHOWN else ""
        say(f"skipped {len(skipped)} of {len(samples)} {data.unit}: {shown}{more}")
    if len(kept) < 2:
        name, reason = skipped[0]
        raise ValueError(f"{len(skipped)} of {len(samples)} {data.unit} cannot be used, the first, {name}: {reason}")
    return kept, skipped


def _sizes(source, out):
    """MB of the weights file and of all that loading needs, before and after."""
    return {
        "weights": {"before": megabytes(source.weights), "after": megabytes(weight_files(out))},
        "directory": {"before": megabytes(source.files()), "after": megabytes(Path(out).iterdir())},
    }
