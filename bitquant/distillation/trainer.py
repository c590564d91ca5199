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

from bitquant.coverage import require_student
from bitquant.distillation.hidden import hidden_states
from bitquant.distillation.interrupt import deferred_interrupt
from bitquant.distillation.losses import PROBLEM_TYPES, hidden_loss, output_loss, pooled_loss, problem_type_of
from bitquant.distillation.meter import Meter
from bitquant.distillation.optimizer import parameter_groups, rate
from bitquant.distillation.state import TrainingState
from bitquant.inputs import first_tensor, followed, run
from bitquant.nn import training
from bitquant.padding import Padding
from bitquant.quantize import calibrate_
from bitquant.quantizers import ActivationQuantizer
from bitquant.quantizers.elastic import NAN_MESSAGE
from bitquant.record import record_of
from bitquant.widths import Widths, parse_chain, set_widths_, widths_of

CALIBRATION_BATCHES = 8


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
    """Train ``student`` in place against ``teacher``: hidden states of every encoder layer, and the outputs.

    Args:
        student: a model after ``quantize_``.
        teacher: the float model it came from; runs in eval mode, without gradients.
        batches: inputs as for ``example_inputs``; iterated again and again until ``steps`` are done. Where a dict's
            ``attention_mask`` is 0, its sequence carries no loss.
        steps: of each stage.
        chain: widths of the stages, such as ``"w1a8,w1a4,w1a1"``, or ``"bit"`` for BiT's; None for one stage at the
            student's own widths.
        stage_teacher: who teaches the stages after the first: the ``"float"`` model or the ``"previous"`` stage.
        restart_scales: calibrate the activation scales anew at each stage; otherwise they are inherited.
        lr: peak learning rate of weights, biases and norms. scale_lr: of the quantizers' scales.
        weight_decay: of the latent weights and float paths. warmup: share of the steps with a rising rate. clip:
            gradient norm.
        hidden_weight, output_weight: weights of the two losses. pooled_weight: of a third, of the outputs' means over
            tokens, for encoders whose outputs are averaged, as sentence embeddings are.
        extra_loss: gets the student's and the teacher's outputs and gives a scalar that is added to the loss: what your
            own frozen head or decoder makes of both, say.
        problem_type: what ``logits`` are, named as in transformers: ``"single_label_classification"`` (one of several
            classes), ``"multi_label_classification"`` or ``"regression"``; None for what the teacher's configuration
            says, and otherwise regression of a single logit and classes of more.
        dropout: train the student in training mode; otherwise its dropout, layer drop and masking stay off, so that it
            sees what the teacher sees.
        fast_gradients: multiply gradients and levels in bfloat16 on processors with instructions for it. Resumed on one
            of another kind, the weights differ by that rounding.
        seed: of everything random in training.
        checkpoint: directory for training checkpoints, written every ``checkpoint_every`` steps and on Ctrl-C.
        resume: go on from the checkpoint, if there is one, to the same weights as an uninterrupted run.
        progress: called after every step with stage, step, steps, loss, flip_ratio (share of weight signs flipped a
            step), tokens_per_s and eta_s.

    Raises:
        ValueError: no steps, no batches, a student that was not quantized, or a checkpoint of other settings.
        FloatingPointError: the loss is not finite; the student then holds the weights before that step.
        KeyboardInterrupt: after the step that was running, its state saved if there is a ``checkpoint``.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if stage_teacher not in ("float", "previous"):
        raise ValueError(f"stage_teacher must be float or previous, got {stage_teacher!r}")
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
    require_student(student)
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
    state = None if checkpoint is None else TrainingState(checkpoint, settings)
    first_stage, first_step = state.position() if state and resume else (0, 0)
    torch.manual_seed(seed)
    teacher.eval()
    stage = _Stage(batches, state, checkpoint_every, progress, extra_loss, settings)
    reference = teacher
    for index in range(first_stage, len(stages)):
        resumed = index == first_stage and first_step > 0
        if index and stage_teacher == "previous":
            reference = _previous(student, stages[index - 1], index - 1, state if index == first_stage else None)
        if chain:
            _enter(student, stages[index], batches, calibrate=restart_scales and not resumed)
        stage.train(student, reference, index, first_step if resumed else 0)
        if state and index + 1 < len(stages):
            state.save_stage(student, index)
    student.eval()


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
        calibrate_(student, itertools.islice(batches, CALIBRATION_BATCHES), low_rank=False)


class _Stage:
    """The training loop of one stage; ``settings`` are those of ``distill``."""

    def __init__(self, batches, state: TrainingState | None, every, progress, extra_loss, settings: dict[str, Any]):
        self.batches, self.state, self.every, self.progress = batches, state, every, progress
        self.extra_loss, self.settings = extra_loss, settings

    def train(self, student: nn.Module, teacher: nn.Module, stage: int, done: int) -> None:
        """Steps ``done`` (from 0) to the last; with ``done`` > 0 the state is read from the checkpoint first."""
        s, blocks = self.settings, record_of(student).blocks
        groups = parameter_groups(student, lr=s["lr"], scale_lr=s["scale_lr"], weight_decay=s["weight_decay"])
        optimizer = torch.optim.AdamW(groups, fused=True)
        student.train(s["dropout"])
        if done:
            self.state.load(student, optimizer)
        meter = Meter(student, str(widths_of(student)), done, s["steps"])
        with (
            deferred_interrupt() as interrupted,
            training.fast_gradients(s["fast_gradients"]),
            hidden_states(student, blocks) as hidden_s,
            hidden_states(teacher, blocks) as hidden_t,
        ):
            for step, batch in enumerate(itertools.islice(_cycle(self.batches), done, s["steps"]), start=done):
                with torch.no_grad(), followed(batch) as padding:
                    target = run(teacher, batch)
                output = self._run(student, batch, step)
                loss = s["output_weight"] * output_loss(output, target, padding, s["problem_type"])
                if s["pooled_weight"]:
                    loss = loss + s["pooled_weight"] * pooled_loss(output, target, padding)
                if self.extra_loss is not None:
                    loss = loss + self.extra_loss(output, target)
                if hidden_t:
                    loss = loss + s["hidden_weight"] * hidden_loss(hidden_s, hidden_t, padding)
                self._step(student, optimizer, loss, step)
                told = meter.update(step + 1, loss.item(), _tokens(batch, padding))
                if self.progress is not None:
                    self.progress(told)
                stop = interrupted()
                # the last step too: what comes after training may fail
                if self.state and ((step + 1) % self.every == 0 or step + 1 == s["steps"] or stop):
                    self.state.save(student, optimizer, stage=stage, step=step + 1)
                if stop:
                    raise KeyboardInterrupt

    def _run(self, student: nn.Module, batch: Any, step: int) -> Any:
        try:
            return run(student, batch)
        except RuntimeError as error:
            if NAN_MESSAGE in str(error):
                raise FloatingPointError(f"{NAN_MESSAGE}, at step {step + 1}") from None
            raise

    def _step(self, student: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
        s = self.settings
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step + 1}: lower the learning rate, {s['lr']}"
            )
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, steps=s["steps"], warmup=s["warmup"])
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # layer drop may leave nothing of a small student that learns
            loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), s["clip"])
        optimizer.step()


def _cycle(batches: Iterable[Any]):
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("there is no data to distil on: batches is empty (give a list, not a spent iterator)")


def _tokens(batch: Any, padding: Padding | None) -> int:
    if padding is not None:
        return padding.tokens
    return math.prod(first_tensor(batch).shape[:2])
