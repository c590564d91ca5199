"""The iterations of a run: targets, training, held-out loss, checkpoints, resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from bitquant.atomic import replacing_file
from bitquant.distillation.interrupt import deferred_interrupt
from bitquant.distillation.optimizer import rate
from bitquant.distillation.randomness import seed_all
from bitquant.json_object import differences, read_object

from ..data.batches import MicroBatch, MicroBatches
from ..data.manifest import digest, read_manifest
from ..pretraining import HubertForPretraining
from ..saved import is_pretrained, save_pretrained
from ..targets import Targets, make_targets
from ..targets.labels import FACTS
from ..targets.layer import LayerFeatures
from ..targets.mfcc import Mfcc
from . import checkpoint
from .config import Iteration, PretrainingConfig
from .log import CURVES, Log, Panel, draw
from .score import Score, evaluate
from .update import Updater
from .workers import Workers

RUN = "run.json"
MAX_VALIDATION = 200  # micro-batches


class Pretraining:
    """A run in a directory: ``iteration-N/model`` for each iteration, ``log.jsonl``, ``curves.png``.

    Started again with the same settings it goes on where it stopped, to the same weights.

    Args:
        config: what to train. model: which of its models. data: directory with a manifest. out: directory of the run.
        iterations: how many of the configured ones.
        workers: this process among its peers. readers: processes that read audio ahead, for each worker.
        progress: called with a dict after each update. say: gets a line of text at each stage.

    Raises:
        ValueError: settings that differ from those the run was started with (the differences are named), or that
            cannot work.
    """

    def __init__(self, config: PretrainingConfig, model: str, data: Path, out: Path, *, iterations: int = 1,
                 workers: Workers | None = None, readers: int = 0,
                 progress: Callable[[dict[str, Any]], None] = lambda state: None,
                 say: Callable[[str], None] = lambda line: None,
                 watch: Callable = lambda items, count, what: items):  # fmt: skip
        if not 1 <= iterations <= len(config.iterations):
            raise ValueError(f"this configuration has {len(config.iterations)} iteration(s), not {iterations}")
        self.workers = workers or Workers()
        if config.optimization.batches % self.workers.count:
            raise ValueError(
                f"batches = {config.optimization.batches} micro-batches an update cannot be shared evenly by "
                f"{self.workers.count} workers"
            )
        self.config, self.model, self.data, self.out = config, model, data, out
        self.iterations, self.readers, self.progress, self.say, self.watch = iterations, readers, progress, say, watch
        self.utterances = read_manifest(data)
        config.model(model, config.iterations[0].clusters)
        self._begin()
        self.log = Log(out)

    def _begin(self) -> None:
        """Starts a run, or makes sure that it is this one which is resumed."""
        known = ("iterations", "batching", "optimization", "seed", "shuffled")
        whole = self.config.to_dict()
        settings = {"model": self.config.models[self.model], "data": digest(self.utterances)}
        settings = json.loads(json.dumps(settings | {key: whole[key] for key in known}))
        file = self.out / RUN
        if file.exists() and (changed := differences(read_object(file), settings)):
            raise ValueError(f"{self.out} was started with other settings ({'; '.join(changed)}): not resumed")
        self.workers.wait()
        if self.workers.first and not file.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            with replacing_file(file) as fresh:
                fresh.write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def run(self) -> Path:
        """All iterations; the directory of the last model.

        Raises:
            FloatingPointError: a loss that is not finite; the last checkpoint from before stays.
            KeyboardInterrupt: after the running update, with a checkpoint.
        """
        for number, iteration in enumerate(self.config.iterations[: self.iterations], start=1):
            if not is_pretrained(self._model(number)):
                self._iterate(number, iteration)
        return self._model(self.iterations)

    def _model(self, number: int) -> Path:
        return self.out / f"iteration-{number}" / "model"

    def _iterate(self, number: int, iteration: Iteration) -> None:
        self._make_targets(number, iteration)
        seed_all(self.config.seed)
        model_config = self.config.model(self.model, iteration.clusters)
        updater = Updater(
            HubertForPretraining(model_config), self.workers, self.config.optimization,
            seed=1000 * self.config.seed + number,
        )  # fmt: skip
        train, valid = (self.batches(split, number) for split in ("train", "valid"))
        directory = self._model(number).parent
        done = checkpoint.load(directory, updater, updates=iteration.updates)
        if self.workers.first:
            self.log.rewind(number, done)
        self.say(f"iteration {number}: {len(train)} micro-batches an epoch, from update {done} of {iteration.updates}")
        self._train(number, iteration, updater, train, valid, done)
        state = checkpoint.model_state(updater)
        if self.workers.first:
            facts = {"iteration": number, "updates": iteration.updates, "label_rate": train.targets.label_rate}
            save_pretrained(model_config, state, self._model(number), **facts)
            (directory / checkpoint.FILE).unlink(missing_ok=True)
        self.workers.wait()

    def _make_targets(self, number: int, iteration: Iteration) -> None:
        """The first worker makes them if they are not there; the others wait."""
        place = self._targets(number)
        if self.workers.first and not (place / FACTS).exists():
            if iteration.layer is None:
                features = Mfcc()
            else:
                features = LayerFeatures(self._model(number - 1), iteration.layer, device=str(self.workers.device))
            self.say(f"iteration {number}: {iteration.clusters} clusters of {features.name}")
            make_targets(
                place, self.utterances, features, iteration.clusters, share=iteration.share, seed=self.config.seed,
                workers=self.readers, watch=self.watch,
            )  # fmt: skip
        self.workers.wait()

    def _targets(self, number: int) -> Path:
        """Those of MFCC lie beside the data, those of a layer in the run."""
        iteration = self.config.iterations[number - 1]
        if iteration.layer is None:
            return self.data / "targets" / f"mfcc-{iteration.clusters}"
        return self._model(number).parent / "targets"

    def batches(self, split: str, number: int) -> MicroBatches:
        """Of an iteration whose targets are there; held-out ones are the same for all seeds.

        Raises:
            ValueError: there are no targets, or they do not fit.
        """
        seed, wanted = self.config.seed, self.config.iterations[number - 1].clusters
        targets = Targets(self._targets(number), self.utterances, shuffle=seed if self.config.shuffled else None)
        if targets.clusters != wanted:
            raise ValueError(f"{self._targets(number)} has {targets.clusters} clusters, the configuration {wanted}")
        chosen = [u for u in self.utterances if u.split == split]
        return MicroBatches(chosen, targets, self.config.batching, seed=seed if split == "train" else 0)

    def _train(self, number, iteration, updater, train, valid, done) -> None:
        """Updates ``done`` to the last."""
        directory, clock = self._model(number).parent, _Clock(done, iteration.updates)
        unigram = train.targets.entropy(valid.utterances)
        batches = self._own(train, done, iteration.updates)
        each = self.config.optimization.batches // self.workers.count
        with deferred_interrupt() as interrupted:
            for update in range(done, iteration.updates):
                scale = rate(update, steps=iteration.updates, warmup=self.config.optimization.warmup)
                try:
                    result = updater(update, list(islice(batches, each)), scale)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{error}; {self._kept(directory)}") from None
                last = update + 1 == iteration.updates
                self._tell(number, update + 1, result, clock, last)
                if last or (update + 1) % self.config.validate_every == 0:
                    self._validate(number, update + 1, updater, valid, unigram, clock)
                stop = self.workers.any(interrupted())
                if last or stop or (update + 1) % self.config.checkpoint_every == 0:
                    checkpoint.save(directory, updater, updates=update + 1)
                if stop:
                    raise KeyboardInterrupt

    def _own(self, train: MicroBatches, done: int, updates: int) -> Iterator[tuple[int, MicroBatch]]:
        """This worker's micro-batches with their numbers, from update ``done`` on."""
        total = self.config.optimization.batches
        numbers = range(done * total + self.workers.rank, updates * total, self.workers.count)
        loader = DataLoader(train, batch_size=None, sampler=numbers, num_workers=self.readers,
                            pin_memory=self.workers.device.type == "cuda")  # fmt: skip
        return zip(numbers, loader, strict=True)

    def _tell(self, number: int, update: int, result: Score, clock: _Clock, last: bool) -> None:
        state = clock.state(update, result.masked)
        self.progress({"stage": f"iteration {number}", "loss": result.loss, **state})
        if self.workers.first and (last or update % self.config.log_every == 0):
            self.log.add(iteration=number, update=update, split="train", **_rounded(result), minutes=clock.minutes())

    def _validate(self, number, update, updater, valid, unigram, clock) -> None:
        count, workers = min(len(valid), MAX_VALIDATION), self.workers
        mine = range(workers.rank, workers.count * -(-count // workers.count), workers.count)
        batches = ((valid[min(i, count - 1)], i < count) for i in mine)
        result = evaluate(updater.model, batches, workers, self.config.optimization.precision)
        if workers.first:
            row = {**_rounded(result), "unigram": round(unigram, 4), "minutes": clock.minutes()}
            self.log.add(iteration=number, update=update, split="valid", **row)
            self._draw()

    def _draw(self) -> None:
        rows = self.log.rows()
        numbers = sorted({row["iteration"] for row in rows})
        draw([Panel(f"{self.model}, iteration {n}", rows, n) for n in numbers], self.out / CURVES)

    def _kept(self, directory: Path) -> str:
        file = directory / checkpoint.FILE
        return f"the last good checkpoint is {file}" if file.exists() else "there was no checkpoint yet"


class _Clock:
    """Time of a run since it was started or resumed."""

    def __init__(self, done: int, updates: int):
        self.done, self.updates, self.start, self.frames = done, updates, time.perf_counter(), 0

    def minutes(self) -> float:
        return round((time.perf_counter() - self.start) / 60, 3)

    def state(self, update: int, frames: int) -> dict[str, Any]:
        self.frames += frames
        elapsed = time.perf_counter() - self.start
        left = elapsed / (update - self.done) * (self.updates - update)
        return {"step": update, "steps": self.updates, "tokens_per_s": self.frames / elapsed, "eta_s": left}


def _rounded(score: Score) -> dict[str, float]:
    return {key: round(value, 5) for key, value in score._asdict().items()}
