"""``distill``: train a 1-bit student to do what its float teacher does, on unlabelled inputs."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitquant.caches import caches_dropped, drop_caches_
from bitquant.capture import ordinary, ordinary_
from bitquant.coverage import require_student
from bitquant.distillation.batches import endless, lasting
from bitquant.distillation.checks import check_losses, check_models, check_numbers, check_savable
from bitquant.distillation.diagnosis import not_finite
from bitquant.distillation.hidden import hidden_states
from bitquant.distillation.interrupt import deferred_interrupt
from bitquant.distillation.losses import PROBLEM_TYPES, hidden_loss, output_loss, pooled_loss, problem_type_of
from bitquant.distillation.meter import Meter
from bitquant.distillation.optimizer import check_dtypes, parameter_groups, rate
from bitquant.distillation.randomness import Randomness
from bitquant.distillation.state import TrainingState
from bitquant.distillation.wrappers import as_written, unwrapped
from bitquant.inputs import first_tensor, followed, run
from bitquant.nn import training
from bitquant.padding import Padding
from bitquant.quantize import calibrate_
from bitquant.quantizers import ActivationQuantizer
from bitquant.quantizers.elastic import NAN_MESSAGE
from bitquant.record import present_record
from bitquant.widths import Widths, parse_chain, set_widths_, widths_of

CALIBRATION_BATCHES = 8
DATA, MODELS, CALIBRATION = range(3)  # what draws random numbers, each its own


@torch.inference_mode(False)
@torch.enable_grad()
def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    chain: str | None = None,
    stage_teacher: str = "float",
    restart_scales: bool = True,
    lr: float = 4e-3,
    scale_lr: float = 4e-3,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    clip: float = 1.0,
    hidden_weight: float = 1.0,
    output_weight: float = 1.0,
    pooled_weight: float = 0.0,
    extra_loss: Callable[[Any, Any], Tensor] | None = None,
    problem_type: str | None = None,
    dropout: bool = False,
    fast_gradients: bool = True,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train ``student`` in place against ``teacher``: hidden states of every encoder layer, and the outputs. Under
    autocast as without: in the dtypes that the two models have.

    Args:
        student: a model after ``quantize_``. Of one in ``torch.compile``, ``DataParallel`` or, in a process alone,
            ``DistributedDataParallel`` the model inside is trained; so for the teacher.
        teacher: the float model it came from; runs in eval mode, without gradients.
        batches: inputs as for ``example_inputs``; iterated again and again until ``steps`` are done: a list, a
            ``DataLoader`` or any object whose ``__iter__`` starts anew. Where a dict's ``attention_mask`` is 0, its
            sequence carries no loss.
        steps: of each stage.
        chain: widths of the stages, such as ``"w1a8,w1a4,w1a1"``, or ``"bit"`` for BiT's; None for one stage at the
            student's own widths.
        stage_teacher: who teaches the stages after the first: the ``"float"`` model or the ``"previous"`` stage.
        restart_scales: calibrate the activation scales anew at each stage; otherwise they are inherited.
        lr: peak learning rate of weights, biases and norms. scale_lr: of the quantizers' scales.
        weight_decay: of the latent weights and float paths. warmup: share of the steps with a rising rate. clip:
            gradient norm.
        hidden_weight, output_weight: of the two losses. pooled_weight: of a third, of the outputs' means over tokens,
            for outputs that are averaged, as sentence embeddings are.
        extra_loss: gets the student's and the teacher's outputs and gives a scalar that is added to the loss: what your
            own frozen head or decoder makes of both, say.
        problem_type: of ``logits``, as transformers names it: one of ``losses.PROBLEM_TYPES``; None for what the
            teacher's configuration says, else regression of a single logit and classes of more.
        dropout: train the student in training mode; otherwise its dropout, layer drop and masking stay off, so that it
            sees what the teacher sees.
        fast_gradients: multiply gradients and levels in bfloat16 on processors with instructions for it. Resumed on one
            of another kind, the weights differ by that rounding.
        seed: of everything random in training: each step seeds the generators of torch, NumPy and Python, and those
            that the models, the batches, their samplers and data sets hold, so that the order of a ``DataLoader``
            follows from it too.
        checkpoint: directory for training checkpoints, written every ``checkpoint_every`` steps and on Ctrl-C.
        resume: go on from the checkpoint, if there is one, to the same weights as an uninterrupted run. The batches of
            its stage are asked for again from the first.
        progress: called after every step with stage, step, steps, loss, flip_ratio (share of weight signs flipped a
            step), tokens_per_s and eta_s.

    Raises:
        ValueError: no steps, no batches or an iterator that could not last, a setting out of its range, a student that
            was not quantized, is float16, shares what it trains with the teacher or has nothing to train, or a
            checkpoint that is damaged or of other settings.
        FloatingPointError: the loss or its gradient is not finite; the student then holds the weights before that step.
        KeyboardInterrupt: after the step that was running, its state saved if there is a ``checkpoint``.
    """
    if stage_teacher not in ("float", "previous"):
        raise ValueError(f"stage_teacher must be float or previous, got {stage_teacher!r}")
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
    wrapper, student, teacher = student, unwrapped(student, "student"), unwrapped(teacher, "teacher")
    require_student(student)
    ordinary_(student)  # what an evaluation in inference mode left in it
    check_dtypes(student)
    stages = parse_chain(chain) if chain else [widths_of(student)]
    settings = {
        "stages": ",".join(map(str, stages)),
        "steps": steps,
        "stage_teacher": stage_teacher,
        "restart_scales": restart_scales,
        "lr": lr,
        "scale_lr": scale_lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "clip": clip,
        "hidden_weight": hidden_weight,
        "output_weight": output_weight,
        "pooled_weight": pooled_weight,
        "extra_loss": extra_loss and getattr(extra_loss, "__qualname__", type(extra_loss).__qualname__),
        "problem_type": problem_type or problem_type_of(teacher),
        "dropout": dropout,
        "fast_gradients": fast_gradients,
        "seed": seed,
    }
    blocks = present_record(student).blocks
    check_numbers(settings, checkpoint_every)
    check_losses(settings, blocks)
    check_models(student, teacher, blocks)
    batches = lasting(batches, steps)
    state = None if checkpoint is None else TrainingState(checkpoint, settings)
    if state:
        check_savable(student)
    first_stage, first_step = state.position() if state and resume else (0, 0)
    teacher.eval()
    drop_caches_(teacher)  # its weights may have been loaded after it ran
    stage = _Stage(batches, state, checkpoint_every, progress, extra_loss, settings)
    reference = teacher
    for index in range(first_stage, len(stages)):
        resumed = index == first_stage and first_step > 0
        if index and stage_teacher == "previous":
            reference = _previous(student, stages[index - 1], index - 1, state if index == first_stage else None)
        randomness = Randomness(seed, student, reference, batches, extra_loss)
        randomness.begin(CALIBRATION, index)
        if chain:
            _enter(student, stages[index], batches, calibrate=restart_scales and not resumed)
        stage.train(student, reference, index, first_step if resumed else 0, randomness)
        if state and index + 1 < len(stages):
            state.save_stage(student, index)
    wrapper.eval()


def _previous(student: nn.Module, widths: Widths, stage: int, state: TrainingState | None) -> nn.Module:
    """The result of the stage before, as a teacher: a copy of the student, or read back when a run is resumed."""
    teacher = copy.deepcopy(student)
    if state is not None:
        set_widths_(teacher, widths)
        state.load_stage(teacher, stage)
    return teacher.eval().requires_grad_(False)


def _enter(student: nn.Module, widths: Widths, batches: Iterable[Any], *, calibrate: bool) -> None:
    set_widths_(student, widths)
    if calibrate:
        for quantizer in student.modules():
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.forget()
        with _no_autocast(student):
            calibrate_(student, itertools.islice(batches, CALIBRATION_BATCHES), low_rank=False)


class _Stage:
    """The training loop of one stage; ``settings`` are those of ``distill``."""

    def __init__(self, batches, state: TrainingState | None, every, progress, extra_loss, settings: dict[str, Any]):
        self.batches, self.state, self.every, self.progress = batches, state, every, progress
        self.extra_loss, self.settings = extra_loss, settings

    def train(self, student: nn.Module, teacher: nn.Module, stage: int, done: int, randomness: Randomness) -> None:
        """Steps ``done`` (from 0) to the last; with ``done`` > 0 the state is read from the checkpoint first."""
        s, blocks = self.settings, present_record(student).blocks
        groups = parameter_groups(student, lr=s["lr"], scale_lr=s["scale_lr"], weight_decay=s["weight_decay"])
        optimizer = torch.optim.AdamW(groups, fused=True)
        student.train(s["dropout"])
        if done:
            self.state.load(student, optimizer)
        if done == s["steps"]:
            return  # no batch need be asked for again
        meter = Meter(student, str(widths_of(student)), done, s["steps"])
        batches = endless(self.batches, s["steps"], lambda step: randomness.begin(DATA, stage, step))
        with (
            _no_autocast(student),
            as_written(student, teacher),
            caches_dropped(student) as drop_caches,
            deferred_interrupt() as interrupted,
            training.fast_gradients(s["fast_gradients"]),
            hidden_states(student, blocks) as hidden_s,
            hidden_states(teacher, blocks) as hidden_t,
        ):
            for step, batch in enumerate(itertools.islice(batches, done, None), start=done):
                randomness.begin(MODELS, stage, step)
                batch = ordinary(batch)
                with torch.no_grad(), followed(batch) as padding:
                    target = run(teacher, batch)
                output = self._run(student, batch, step, target)
                loss = s["output_weight"] * output_loss(output, target, padding, s["problem_type"])
                if s["pooled_weight"]:
                    loss = loss + s["pooled_weight"] * pooled_loss(output, target, padding)
                if self.extra_loss is not None:
                    loss = loss + self._extra(output, target, step)
                if hidden_t:
                    loss = loss + s["hidden_weight"] * hidden_loss(hidden_s, hidden_t, padding)
                if not math.isfinite(loss.item()):
                    taught = {"batch": batch, "teacher's layers": hidden_t, "teacher's outputs": target}
                    cause = not_finite(taught | {"student's layers": hidden_s, "student's outputs": output})
                    raise FloatingPointError(
                        f"the loss is {loss.item()} at step {step + 1}{cause}: lower the learning rate, {s['lr']}"
                    )
                self._step(student, optimizer, loss, step)
                drop_caches()
                told = meter.update(step + 1, loss.item(), _tokens(batch, padding))
                if self.progress is not None:
                    self.progress(told)
                stop = interrupted()
                # the last step too: what comes after training may fail
                if self.state and ((step + 1) % self.every == 0 or step + 1 == s["steps"] or stop):
                    self.state.save(student, optimizer, stage=stage, step=step + 1)
                if stop:
                    raise KeyboardInterrupt

    def _run(self, student: nn.Module, batch: Any, step: int, target: Any) -> Any:
        try:
            return run(student, batch)
        except (ValueError, RuntimeError) as error:
            if NAN_MESSAGE in str(error):
                cause = not_finite({"batch": batch, "teacher's outputs": target})
                raise FloatingPointError(f"{NAN_MESSAGE}, at step {step + 1}{cause}") from None
            raise

    def _extra(self, output: Any, target: Any, step: int) -> Tensor | float:
        extra = self.extra_loss(output, target)
        if not isinstance(extra, (Tensor, int, float)) or (isinstance(extra, Tensor) and extra.numel() != 1):
            given = f"shape {tuple(extra.shape)}" if isinstance(extra, Tensor) else type(extra).__name__
            raise ValueError(f"extra_loss must give one number, a scalar tensor; it gave {given}")
        value = extra.item() if isinstance(extra, Tensor) else extra
        if not math.isfinite(value):
            raise FloatingPointError(f"extra_loss gave {value} at step {step + 1}")
        return extra.reshape(()) if isinstance(extra, Tensor) else extra

    def _step(self, student: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
        s = self.settings
        if not loss.requires_grad:
            if s["dropout"]:  # layer drop may leave nothing of a small student that learns
                return
            raise ValueError("nothing that trains has a part in the loss: the student runs without gradients")
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, steps=s["steps"], warmup=s["warmup"])
        optimizer.zero_grad(set_to_none=True)
        try:
            loss.backward()
        except RuntimeError as error:
            if "backward through the graph a second time" in str(error):
                kept = "a module keeps a tensor with gradients from one step to the next, where no attribute shows it"
                raise ValueError(f"{kept}: compute it in every forward") from None
            raise
        norm = float(torch.nn.utils.clip_grad_norm_(student.parameters(), s["clip"]))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is {norm} at step {step + 1}, of a loss of {loss.item():.4g}: lower the learning rate, "
                f"{s['lr']}"
            )
        optimizer.step()


def _no_autocast(student: nn.Module) -> torch.autocast:
    """Context in which a caller's autocast is off: its cast of a float weight is kept from the first step on, does not
    see the later ones, and has no gradient where it was made without."""
    device = next((p.device.type for p in student.parameters()), "cpu")
    return torch.autocast(device, enabled=False)


def _tokens(batch: Any, padding: Padding | None) -> int:
    return padding.tokens if padding is not None else math.prod(first_tensor(batch).shape[:2])
