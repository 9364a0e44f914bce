"""What one training run holds, and what it does between steps: log, evaluate, save, resume, end.

This module knows nothing of how a gradient is computed.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.config import plain
from m6rec.errors import CheckpointError, ConfigError, DataError, RunError, UnknownNameError
from m6rec.tasks.base import Task
from m6rec.training.chance import seed_all
from m6rec.training.checkpoint import Checkpoint, Checkpoints, best_name, step_name
from m6rec.training.config import TrainingConfig
from m6rec.training.learner import Learner, Totals, use_bf16
from m6rec.training.optim import (
    WeightAverage,
    build_optimizer,
    copy_weights,
    load_optimizer_tensors,
    optimizer_tensors,
    trained_parameters,
)
from m6rec.training.processes import build_accelerator, sum_over_processes
from m6rec.training.progress import Progress, TrainLog
from m6rec.training.state import Limits, Reason, State
from m6rec.training.stream import Stream

logger = logging.getLogger("m6rec.training")

Evaluate = Callable[[int], dict[str, float]]

# What the seeds of one run are drawn for.
REFRESH, STEP = 0, 1


class Run:
    """The parts of one run, and its verbs.

    Args:
        task: as in :func:`m6rec.training.loop.train`, like all that follow.
        backbone: tuned.
        config: how to train.
        out: the run's folder.
        evaluate: step -> validation figures.

    Raises:
        ConfigError: nothing to train, or nothing to evaluate with.
        DataError: no examples.
    """

    def __init__(
        self, task: Task, backbone: Backbone, config: TrainingConfig, out: Path, evaluate: Evaluate | None
    ) -> None:
        if config.evaluate_every is not None and evaluate is None:
            raise ConfigError("evaluate_every is set, but there is nothing to evaluate with: set it to null")
        self.task, self.backbone, self.config, self._evaluate = task, backbone, config, evaluate
        self.accelerator = build_accelerator(config, out)
        self.examples: Sequence[Any] = task.examples()
        if not len(self.examples):
            raise DataError("the task has no training examples: look at the dataset's split and the task's filters")
        self.stream = self._new_stream()
        self.limits = Limits.of(config, self.stream.num_batches)
        learner = Learner(backbone, task, use_bf16(config.precision, self.accelerator.device))
        self.trained = trained_parameters(learner)
        self._bare_optimizer = build_optimizer(task, backbone, config)
        self.learner, self.optimizer = self.accelerator.prepare(learner, self._bare_optimizer)
        self.average = WeightAverage(self.trained, config.ema) if config.ema is not None else None
        self.checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
        self.progress = Progress(shown=self.is_main)
        self.log = TrainLog(out / "train_log.jsonl", self.is_main, self.is_main and not self.progress.live)
        self.state, self.interrupted = State(), False
        self._open_epoch, self._saved_step, self._buffers = -1, -1, dict[str, Tensor]()

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that talks, evaluates and writes."""
        return bool(self.accelerator.is_main_process)

    def share(self, steps_ahead: float = 0.0) -> float:
        """Return the share of the training that is done ``steps_ahead`` of now."""
        return self.limits.share(self.state, steps_ahead)

    def reason(self) -> Reason | None:
        """Return why the training ends here, if it does."""
        return "interrupted" if self.interrupted else self.limits.reached(self.state)

    def start(self, resume: bool) -> None:
        """Stand at the beginning, or where the newest whole checkpoint stands; start the clocks.

        Raises:
            RunError: there are checkpoints, and nobody asked to resume.
            CheckpointError: what is resumed is broken or was made otherwise.
        """
        found = self.checkpoints.latest() if resume else None
        if not resume and self.checkpoints.steps():
            folder = self.checkpoints.folder
            raise RunError(f"{folder} holds the checkpoints of another run: resume it, or take another folder")
        # Nobody writes before everybody has looked.
        self.accelerator.wait_for_everyone()
        if found is not None:
            self._restore(found)
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._former = dataclasses.replace(self.state)
        self._former_share = self.share()

    def open_epoch(self) -> None:
        """Before the first step of an epoch, let the task refresh what it caches, and ask it for its examples anew.

        Raises:
            RunError: the task now has another number of examples.
        """
        epoch = self.state.epoch
        if self._open_epoch == epoch:
            return
        seed_all(self.config.seed, REFRESH, epoch)
        self.learner.eval()
        with torch.no_grad():
            self.task.refresh(self.backbone, epoch)
        if self.state.batch:  # resumed inside an epoch, whose cache came from weights that are gone
            _put_buffers(self.task, self._buffers, self.accelerator.device)
        self._buffers = {}
        before, self.examples = len(self.examples), self.task.examples()
        if len(self.examples) != before:
            raise RunError(
                f"the task had {before} examples and has {len(self.examples)} in epoch {epoch}; keep the number"
            )
        self.stream, self._open_epoch = self._new_stream(), epoch
        self.learner.train()

    def total(self, totals: Totals, asked: bool) -> Totals:
        """Sum one step's totals over all processes, and with them the clocks and whether anybody wants to stop."""
        cpu_seconds = time.process_time() - self._cpu
        summed = sum_over_processes(self.accelerator, [totals.weight, totals.loss, float(asked), cpu_seconds])
        self.interrupted = summed[2] > 0
        self.state.seconds = self._former.seconds + time.perf_counter() - self._wall
        self.state.cpu_seconds = self._former.cpu_seconds + summed[3]
        return dataclasses.replace(totals, weight=summed[0], loss=summed[1])

    def check_finite(self, totals: Totals, norm: float) -> None:
        """Stop before a broken gradient reaches the weights.

        Raises:
            RunError: loss or gradient is not finite; the weights before this step are saved.
        """
        if math.isfinite(totals.loss) and math.isfinite(norm):
            return
        self.optimizer.zero_grad()
        self.save()
        raise RunError(
            f"step {self.state.step + 1}: the loss is {totals.loss} and the gradient's norm {norm}, expected finite "
            f"numbers; the weights before that step are in {self.checkpoints.folder}: resume with a lower lr, a "
            "smaller clip or precision=fp32"
        )

    def advance(self, totals: Totals, norm: float, seconds: float) -> None:
        """Count one step, and log it if due."""
        state, config = self.state, self.config
        examples = len(self.stream.batch(state.epoch, state.batch))
        sums = {"weight": totals.weight, "loss": totals.loss, "own_weight": totals.own_weight}
        _add(state.window, sums | {"examples": float(examples), "seconds": seconds})
        _add(state.figures, totals.figures)
        state.step += 1
        epochs, state.batch = divmod(state.batch + 1, self.stream.num_batches)
        state.epoch += epochs
        window = state.window
        loss, speed = window["loss"] / (window["weight"] or 1.0), window["examples"] / window["seconds"]
        self.progress.show(state.step, self.share(), loss, speed, self._seconds_left())
        if state.step % config.log_every == 0 or self.limits.reached(state) in ("finished", "budget"):
            figures = {name: value / (window["own_weight"] or 1.0) for name, value in state.figures.items()}
            lr = self.optimizer.param_groups[0]["lr"]
            self._record(
                {"loss": loss, "lr": lr, "gradient_norm": norm, "examples_per_second": speed, "figures": figures}
            )
            state.window, state.figures = {}, {}

    def evaluate_if_due(self) -> None:
        """Evaluate the weights that would be kept now, unless that has been done."""
        state, every = self.state, self.config.evaluate_every
        reason = self.reason()
        first = self.config.evaluate_first and state.step == 0
        due = first or state.is_due(every) or (every is not None and reason is not None)
        if not due or reason == "interrupted" or state.evaluated_step == state.step:
            return
        try:
            figures = self._figures()
            self._select(figures)
        except Exception:
            self.save()  # an evaluation that fails must not cost the steps before it
            raise
        state.evaluated_step = state.step
        self._record({"evaluation": figures})

    def save_if_due(self) -> None:
        """Write a checkpoint if it is time for one, or if the training ends here."""
        if self.state.is_due(self.config.save_every) or self.reason():
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one.

        Raises:
            CheckpointError: it cannot be written; the former ones are untouched.
        """
        state = self.state
        if not self.is_main or self._saved_step == state.step:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {
            "weights": self.trained,
            "optimizer": optimizer_tensors(self._bare_optimizer, self.trained),
        }
        if self.average is not None:
            tensors["average"] = self.average.tensors
        if buffers := _buffers(self.task):
            tensors["buffers"] = buffers
        content = {"identity": self._identity(), "config": plain(self.config), "run": dataclasses.asdict(state)}
        needs = best_name(state.best_step) if state.best_step is not None else None
        self.checkpoints.save(step_name(state.step), tensors, content, needs)
        self.checkpoints.prune()
        self._saved_step = state.step

    def finish(self, reason: Reason) -> None:
        """Put the weights in place that are to be kept, and close what is open."""
        self.accelerator.wait_for_everyone()
        if reason != "interrupted":
            if self.state.best_step is not None:
                best = self.checkpoints.open(best_name(self.state.best_step))
                copy_weights(best.tensors("weights"), self.trained)
            elif self.average is not None:
                copy_weights(self.average.tensors, self.trained)
        self.learner.eval()
        self.total(Totals(), asked=False)
        self.log.write({"event": reason, "step": self.state.step, "seconds": self.state.seconds})
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _new_stream(self) -> Stream:
        processes = int(self.accelerator.num_processes)
        return Stream.of(self.config, len(self.examples), self.task.lengths(), self.rank, processes)

    def _seconds_left(self) -> float:
        done = self.share() - self._former_share
        return (self.state.seconds - self._former.seconds) * (1 - self.share()) / done if done > 0 else math.inf

    def _record(self, figures: dict[str, Any]) -> None:
        state = self.state
        epoch = state.epoch + state.batch / self.stream.num_batches
        clocks = {"seconds": round(state.seconds, 3), "cpu_seconds": round(state.cpu_seconds, 3)}
        record = {"step": state.step, "epoch": epoch, **figures, **clocks}
        state.history.append(record)
        self.log.write(record)
        self.accelerator.log(_flat(figures), step=state.step)

    def _figures(self) -> dict[str, float]:
        self.learner.eval()
        box: list[dict[str, float]] = [{}]
        with self.average.applied() if self.average else nullcontext(), torch.no_grad():
            if self.is_main and self._evaluate is not None:
                box = [self._evaluate(self.state.step)]
            broadcast_object_list(box)
        self.learner.train()
        return box[0]

    def _select(self, figures: dict[str, float]) -> None:
        name, state = self.config.select_on, self.state
        if name is None:
            return
        if name not in figures:
            raise UnknownNameError("validation figure", name, figures)
        if not state.is_best(figures[name], self.config.select_lowest):
            state.worse += 1
            return
        if self.is_main:
            weights = self.average.tensors if self.average is not None else self.trained
            self.checkpoints.save(best_name(state.step), {"weights": weights}, {name: figures[name]})
        state.best, state.best_step, state.worse = figures[name], state.step, 0

    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "task": self.task.name,
            "backbone": self.backbone.fingerprint,
            "num_examples": len(self.examples),
            "seed": config.seed,
            "batch_size": config.batch_size,
            "bucket_by_length": config.bucket_by_length,
        }

    def _restore(self, found: Checkpoint) -> None:
        now, then = self._identity(), found.state["identity"]
        if changed := [
            f"{name}: got {now[name]!r}, expected {then[name]!r}" for name in now if now[name] != then[name]
        ]:
            raise CheckpointError(f"{found.folder} cannot be resumed with another {'; '.join(changed)}")
        for name, value in plain(self.config).items():
            if value != found.state["config"].get(name):
                logger.warning("resuming with %s=%r, was %r", name, value, found.state["config"].get(name))
        copy_weights(found.tensors("weights"), self.trained)
        load_optimizer_tensors(self._bare_optimizer, self.trained, found.tensors("optimizer"))
        if self.average is not None:
            copy_weights(found.tensors("average"), self.average.tensors)
        self._buffers = found.tensors("buffers")
        _put_buffers(self.task, self._buffers, self.accelerator.device)
        self.state = State(**found.state["run"])
        self._saved_step = self.state.step
        self.log.write({"event": "resumed", "step": self.state.step, "checkpoint": found.folder.name})


def _buffers(task: Task) -> dict[str, Tensor]:
    """Return the task's persistent buffers: what it keeps besides its parameters."""
    entries = task.state_dict(keep_vars=True).items()
    return {name: value for name, value in entries if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)}


def _put_buffers(task: Task, saved: Mapping[str, Tensor], device: torch.device) -> None:
    """Put buffers back, whatever shape the task's own have by now (a cache may be empty before its first refresh)."""
    for name, tensor in saved.items():
        place, _, leaf = name.rpartition(".")
        module = task.get_submodule(place)
        if leaf in module._buffers:
            setattr(module, leaf, tensor.to(device))


def _flat(figures: Mapping[str, Any]) -> dict[str, float]:
    groups = {name: value if isinstance(value, Mapping) else {"": value} for name, value in figures.items()}
    return {f"{name}/{key}".rstrip("/"): value for name, group in groups.items() for key, value in group.items()}


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value
