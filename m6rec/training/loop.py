"""The training loop: one for every task, tuner and wrapper, on one process or many.

It knows one thing: ``task.loss(backbone, batch)``. It knows no task, tuner or dataset.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m6rec.backbones.base import Backbone
from m6rec.tasks.base import Task
from m6rec.training.chance import seed_all
from m6rec.training.config import TrainingConfig
from m6rec.training.interrupts import Interrupts
from m6rec.training.learner import average_gradients, backward
from m6rec.training.optim import rate, set_rate
from m6rec.training.processes import all_processes_needed
from m6rec.training.run import STEP, Evaluate, Run
from m6rec.training.state import Reason

__all__ = ["TrainResult", "TrainingConfig", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run has come to.

    Args:
        steps: optimiser steps, over all resumptions.
        epochs: passes over the examples; a part of one counts as such.
        seconds: wall time, over all resumptions.
        cpu_seconds: CPU time, over all processes and resumptions.
        stopped: why it ended.
        best: best value of ``select_on``; ``None`` without one.
        best_step: when that was.
        history: the records of ``train_log.jsonl``; those of an evaluation have the key ``evaluation``.
    """

    steps: int
    epochs: float
    seconds: float
    cpu_seconds: float
    stopped: Reason
    best: float | None
    best_step: int | None
    history: list[dict[str, Any]]

    @classmethod
    def nothing(cls) -> "TrainResult":
        """Return what comes of a task that has nothing to learn."""
        return cls(0, 0.0, 0.0, 0.0, "finished", None, None, [])

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it: the weights are those of the last step, and it can be resumed."""
        return self.stopped == "interrupted"


def train(
    task: Task,
    backbone: Backbone,
    config: TrainingConfig,
    out: Path,
    *,
    resume: bool = False,
    evaluate: Evaluate | None = None,
) -> TrainResult:
    """Train what requires gradients in ``backbone`` and ``task``, in place.

    On return both are in eval mode and hold the weights that were asked for: the best ones (``select_on``), else the
    averaged ones (``ema``), else the last ones; after an interruption always the last ones. Python's, numpy's and
    torch's global random states are reseeded at every step.

    Args:
        task: gives examples, batches and their loss.
        backbone: tuned.
        config: how to train.
        out: the run's folder; gets ``checkpoints/`` and ``train_log.jsonl``.
        resume: go on from the newest whole checkpoint in ``out``, bit for bit on a CPU; from the start where there is
            none. What ``task.refresh`` computes from trained weights is kept only if it lies in a persistent buffer.
        evaluate: step -> validation figures; called on the main process alone, with the weights that would be kept.

    Raises:
        ConfigError: nothing to train, or a setting that does not fit the rest.
        DataError: no examples.
        RunError: ``out`` holds another run's checkpoints, or the loss is not finite.
        CheckpointError: a checkpoint cannot be written, or does not fit what is resumed.
    """
    run = Run(task, backbone, config, Path(out), evaluate)
    run.start(resume)
    with Interrupts() as interrupts, run.progress, all_processes_needed(run.accelerator, run.checkpoints.folder):
        if config.evaluate_first:
            run.open_epoch()  # the task may be asked only after its refresh
        run.evaluate_if_due()
        while not (reason := run.reason()):
            run.open_epoch()
            started = time.perf_counter()
            seed_all(config.seed, STEP, run.state.step, run.rank)
            set_rate(run.optimizer, rate(run.share(steps_ahead=0.5), config))
            pieces = run.stream.pieces(run.state.epoch, run.state.batch)
            own = backward(run.accelerator, run.learner, task, run.examples, pieces)
            totals = run.total(own, asked=interrupts.asked)
            average_gradients(run.trained.values(), totals.weight, run.accelerator.num_processes)
            norm = run.accelerator.clip_grad_norm_(run.trained.values(), config.clip or float("inf")).item()
            run.check_finite(totals, norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
            if run.average is not None:
                run.average.update(run.state.step + 1)
            run.advance(totals, norm, time.perf_counter() - started)
            run.evaluate_if_due()
            run.save_if_due()
    run.finish(reason)
    state = run.state
    return TrainResult(
        steps=state.step,
        epochs=state.epoch + state.batch / run.stream.num_batches,
        seconds=state.seconds,
        cpu_seconds=state.cpu_seconds,
        stopped=reason,
        best=state.best,
        best_step=state.best_step,
        history=state.history,
    )
