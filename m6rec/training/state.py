"""Where a run stands, and how far that is from its end. This module knows no model, file or process."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from m6rec.training.config import Every, TrainingConfig

Reason = Literal["finished", "budget", "patience", "interrupted"]


@dataclass
class State:
    """Where a run stands; saved with every checkpoint.

    Args:
        step: optimiser steps done.
        epoch: the epoch that the next batch belongs to.
        batch: the next batch of that epoch.
        seconds: wall time so far.
        cpu_seconds: CPU time so far, over all processes.
        evaluated_step: when the weights were last evaluated; -1 = never.
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
    evaluated_step: int = -1
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    window: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def is_due(self, every: Every) -> bool:
        """Return whether something that happens ``every`` so often happens now.

        >>> State(step=6, batch=2).is_due(3), State(step=6, batch=2).is_due("epoch"), State().is_due(3)
        (True, False, False)
        """
        if every is None or self.step == 0:
            return False
        return self.batch == 0 if every == "epoch" else self.step % every == 0

    def is_best(self, value: float, lowest: bool) -> bool:
        """Return whether ``value`` is better than all before; what is not finite never is.

        Args:
            value: of the figure that selects.
            lowest: whether less is better.
        """
        if self.best is None or not math.isfinite(value):
            return math.isfinite(value)
        return value < self.best if lowest else value > self.best


@dataclass(frozen=True)
class Limits:
    """What ends a training, as numbers.

    Args:
        num_steps: optimiser steps; infinite where only CPU time is limited.
        cpu_seconds: CPU time, over all processes; may be infinite.
        patience: evaluations without a better one; may be infinite.
    """

    num_steps: float
    cpu_seconds: float = math.inf
    patience: float = math.inf

    @classmethod
    def of(cls, config: TrainingConfig, num_batches: int) -> "Limits":
        """Return the limits of a run whose epochs have ``num_batches`` batches.

        >>> Limits.of(TrainingConfig(num_epochs=2, max_steps=7), num_batches=5).num_steps
        7
        """
        by_epochs = math.inf if config.num_epochs is None else config.num_epochs * num_batches
        return cls(
            num_steps=min(by_epochs, math.inf if config.max_steps is None else config.max_steps),
            cpu_seconds=math.inf if config.max_cpu_seconds is None else config.max_cpu_seconds,
            patience=math.inf if config.patience is None else config.patience,
        )

    def share(self, state: State, steps_ahead: float = 0.0) -> float:
        """Return the share of the training that is done ``steps_ahead`` of now: that of the limit nearest to its end.

        >>> Limits(num_steps=10, cpu_seconds=60.0).share(State(step=1, cpu_seconds=30.0))
        0.5
        """
        return min(max((state.step + steps_ahead) / self.num_steps, state.cpu_seconds / self.cpu_seconds), 1.0)

    def reached(self, state: State) -> Reason | None:
        """Return why the training ends here, if it does."""
        if state.worse >= self.patience:
            return "patience"
        if state.step >= self.num_steps:
            return "finished"
        return "budget" if state.cpu_seconds >= self.cpu_seconds else None
