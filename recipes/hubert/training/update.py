"""One update of the weights from the micro-batches of all workers."""

from __future__ import annotations

import math

import torch
from torch import nn

from bitquant.distillation.randomness import derived_seed, seed_all

from ..data.batches import MicroBatch
from ..pretraining import HubertForPretraining
from .config import Optimization
from .score import Score, predict, total
from .workers import Workers, plain, whole


class Updater:
    """Model, optimizer, and what one update does with them (hubert.md 1.6, 1.7).

    What is random in an update follows from ``seed``, its number and the number of each micro-batch, so a resumed run
    and a run on another number of workers draw the same. Layers are dropped once an update, the same by all workers,
    which have to communicate layer by layer.
    """

    def __init__(self, model: HubertForPretraining, workers: Workers, settings: Optimization, *, seed: int):
        self.workers, self.settings, self.seed = workers, settings, seed
        self.model = workers.spread(model)
        self.dropped = torch.Generator()
        plain(self.model).hubert.encoder.generator = self.dropped
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps,
            weight_decay=settings.weight_decay,
        )  # fmt: skip

    def __call__(self, update: int, batches: list[tuple[int, MicroBatch]], rate: float) -> Score:
        """
        Args:
            update: its number. batches: this worker's micro-batches, each with its number in the whole run.
            rate: share of the peak learning rate.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; weights are as before.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        (masked,) = self.workers.sum(sum(int(batch.mask.sum()) for _, batch in batches))
        outputs = []
        for position, (number, batch) in enumerate(batches):
            self.dropped.manual_seed(derived_seed(self.seed, 1, update))
            seed_all(derived_seed(self.seed, 2, number))
            with self.workers.averaging(self.model, position + 1 == len(batches)):
                output = predict(self.model, batch, self.workers.device, self.settings.precision)
                # workers average, so what is to be a sum is given times their number
                (output.loss * (self.workers.count / masked)).backward()
            outputs.append((output, batch))
        result = total(outputs, self.workers)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        result = result._replace(norm=float(whole(norm)))
        if not math.isfinite(result.loss) or not math.isfinite(result.norm):
            raise FloatingPointError(self._complaint(update, outputs, result))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * rate
        self.optimizer.step()
        return result

    def _complaint(self, update: int, outputs, result: Score) -> str:
        bad = [name for output, batch in outputs if not math.isfinite(output.loss.item()) for name in batch.ids]
        place = f", in a micro-batch with {', '.join(bad[:3])}" if bad else ""
        what = f"the loss is {result.loss}" if not math.isfinite(result.loss) else f"the gradient is {result.norm}"
        return f"{what} at update {update + 1}{place}: lower the learning rate, {self.settings.lr}?"


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, of the model inside what ``Workers.spread`` made."""
    return dict(plain(model).named_parameters())
