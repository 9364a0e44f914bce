"""What one training run holds, and what it does between steps: log, evaluate, save, resume, end.

This module knows nothing of how a gradient is computed.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    is_tensorboard_available,
)
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.config import plain
from m6rec.errors import CheckpointError, ConfigError, DataError, MissingExtraError, RunError, UnknownNameError
from m6rec.tasks.base import Task
from m6rec.training.chance import seed_all
from m6rec.training.checkpoint import Checkpoint, Checkpoints, best_name, step_name
from m6rec.training.config import Every, TrainingConfig
from m6rec.training.learner import Learner, Totals, use_bf16
from m6rec.training.optim import (
    WeightAverage,
    build_optimizer,
    copy_weights,
    load_optimizer_tensors,
    optimizer_tensors,
    trained_parameters,
)
from m6rec.training.progress import Progress, TrainLog
from m6rec.training.stream import Stream

logger = logging.getLogger("m6rec.training")

Reason = Literal["finished", "budget", "patience", "interrupted"]
Evaluate = Callable[[int], dict[str, float]]

# What the seeds of one run are drawn for.
REFRESH, STEP = 0, 1


@dataclass
class State:
    """Where a run stands; saved with every checkpoint.

    Args:
        step: optimiser steps done.
        epoch: the epoch that the next batch belongs to.
        batch: the next batch of that epoch.
        seconds: wall time so far.
        cpu_seconds: CPU time so far, over all processes.
        evaluated_step: when the weights were last evaluated.
        best: best value of ``select_on``.
        best_step: when that was.
        worse: evaluations since then.
        window: sums since the last log line: weight, loss, own weight, examples, seconds.
        figures: weighted sums of the task's figures since the last log line.
        history: every record so far.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    evaluated_step: int = 0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    window: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


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
        self.accelerator = _accelerator(config, out)
        self.examples: Sequence[Any] = task.examples()
        if not len(self.examples):
            raise DataError("the task has no training examples: look at the dataset's split and the task's filters")
        self.stream = self._new_stream()
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

    @property
    def num_steps(self) -> float:
        """Steps that the training has at most; infinite where only its CPU time is limited."""
        epochs, steps = self.config.num_epochs, self.config.max_steps
        by_epochs = math.inf if epochs is None else epochs * self.stream.num_batches
        return min(by_epochs, math.inf if steps is None else steps)

    def share(self, steps_ahead: float = 0.0) -> float:
        """Return the share of the training that is done, ``steps_ahead`` of now: the largest share of any limit."""
        budget = self.config.max_cpu_seconds
        by_cpu = self.state.cpu_seconds / budget if budget is not None else 0.0
        return min(max((self.state.step + steps_ahead) / self.num_steps, by_cpu), 1.0)

    def reason(self) -> Reason | None:
        """Return why the training ends here, if it does."""
        budget, patience = self.config.max_cpu_seconds, self.config.patience
        if self.interrupted:
            return "interrupted"
        if patience is not None and self.state.worse >= patience:
            return "patience"
        if self.state.step >= self.num_steps:
            return "finished"
        return "budget" if budget is not None and self.state.cpu_seconds >= budget else None

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
            copy_weights(self._buffers, _buffers(self.task))
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
        summed = self._sum([totals.weight, totals.loss, float(asked), cpu_seconds])
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
        if state.step % config.log_every == 0 or self.reason() in ("finished", "budget"):
            figures = {name: value / (window["own_weight"] or 1.0) for name, value in state.figures.items()}
            lr = self.optimizer.param_groups[0]["lr"]
            self._record({"loss": loss, "lr": lr, "gradient_norm": norm, "examples_per_second": speed, **figures})
            state.window, state.figures = {}, {}

    def evaluate_if_due(self) -> None:
        """Evaluate the weights that would be kept now, unless that has been done."""
        state, every = self.state, self.config.evaluate_every
        reason = self.reason()
        due = self._is_due(every) or (every is not None and reason is not None)
        if not due or reason == "interrupted" or state.evaluated_step == state.step:
            return
        try:
            figures = self._figures()
            state.evaluated_step = state.step
            self._select(figures)
        except Exception:
            self.save()  # an evaluation that fails must not cost the steps before it
            raise
        self._record({"evaluation": figures})

    def save_if_due(self) -> None:
        """Write a checkpoint if it is time for one, or if the training ends here."""
        if self._is_due(self.config.save_every) or self.reason():
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
        return Stream(
            len(self.examples),
            self.config.batch_size,
            seed=self.config.seed,
            lengths=self.task.lengths() if self.config.bucket_by_length else None,
            accumulation=self.config.gradient_accumulation,
            rank=self.rank,
            num_processes=int(self.accelerator.num_processes),
        )

    def _sum(self, numbers: list[float]) -> list[float]:
        if self.accelerator.num_processes == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        summed: list[float] = self.accelerator.reduce(tensor, reduction="sum").tolist()
        return summed

    def _is_due(self, every: Every) -> bool:
        if every is None or self.state.step == 0:
            return False
        return self.state.batch == 0 if every == "epoch" else self.state.step % every == 0

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
        numbers = figures.get("evaluation", figures)
        self.accelerator.log(numbers, step=state.step)

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
        value = figures[name]
        gain = math.inf if state.best is None else (value - state.best) * (-1 if self.config.select_lowest else 1)
        if not (math.isfinite(value) and gain > 0):
            state.worse += 1
            return
        state.best, state.best_step, state.worse = value, state.step, 0
        if self.is_main:
            weights = self.average.tensors if self.average is not None else self.trained
            self.checkpoints.save(best_name(state.step), {"weights": weights}, {name: value})

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
        self.state = State(**found.state["run"])
        self._saved_step = self.state.step
        self.log.write({"event": "resumed", "step": self.state.step, "checkpoint": found.folder.name})


def _accelerator(config: TrainingConfig, out: Path) -> Accelerator:
    tracked = config.tracker == "tensorboard"
    if tracked and not is_tensorboard_available():
        raise MissingExtraError("tensorboard", "bench")
    # A task need not use every parameter in every batch; and its buffers are equal by construction (same seed, same
    # weights), so they are not sent around.
    settings = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision="no",  # Learner computes in bf16 itself
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # the loop accumulates, exactly
        kwargs_handlers=[settings],
        log_with="tensorboard" if tracked else None,
        project_dir=out,
    )
    if tracked:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _buffers(task: Task) -> dict[str, Tensor]:
    """Return the task's persistent buffers: what it keeps besides its parameters."""
    entries = task.state_dict(keep_vars=True)
    return {name: value for name, value in entries.items() if not isinstance(value, nn.Parameter)}


def _add(sums: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value
