"""The settings of a training run. This module knows no task, backbone or loop."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from m6rec.errors import ConfigError

Every = int | Literal["epoch"] | None


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how fast and how exactly to train.

    Training ends at the first of ``num_epochs``, ``max_steps`` and ``max_cpu_seconds``, and the schedule reaches its
    end there too: its progress is the largest of the shares of the limits that are used up.

    Raises:
        ConfigError: lists every impossible value at once.
    """

    num_epochs: int | None = 3
    """Passes over the examples; null = no limit. Changes results."""
    max_steps: int | None = None
    """Optimiser steps at most; null = no limit. Changes results."""
    max_cpu_seconds: float | None = None
    """Training budget in CPU-seconds, summed over threads and processes, refresh, evaluations and checkpoints included
    (the step that crosses it is finished); null = off. Changes results, and makes them depend on the machine."""
    batch_size: int | None = 32
    """Examples in one optimiser step, over all processes and accumulated pieces together; null = a sixtieth of the
    examples, between 8 and 256, so that small logs are stepped over often enough. Changes results."""
    gradient_accumulation: int = 1
    """Pieces that each process cuts its share of a batch into. Saves memory and changes no gradient, except for a loss
    that compares the examples of a piece with each other (in-batch negatives see a smaller batch)."""
    lr: float = 3e-4
    """Peak learning rate of what is trained inside the backbone (the tuner). Changes results."""
    head_lr: float | None = None
    """Peak learning rate of the task's own heads; null = the same as lr. Changes results."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay of matrices; norms, biases, scalars and embedding tables of heads are never decayed.
    Changes results."""
    beta2: float = 0.999
    """AdamW's decay of squared gradients; 0.98 suits runs of a few hundred steps. Changes results."""
    warmup: float = 0.05
    """Share of the training over which the rate climbs to its peak, 0 to 1. Changes results."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls from its peak to zero after the warm-up. Changes results."""
    clip: float | None = 1.0
    """Largest norm of the gradient of all trained parameters; null = no clipping. Changes results."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass (weights stay as they are); auto = bf16 where the hardware computes in it. Changes
    results slightly, and speed up to twofold."""
    ema: float | None = None
    """Decay of an exponential moving average of the trained weights, e.g. 0.999; the averaged weights are what is
    evaluated and kept at the end; null = off. Changes results."""
    seed: int = 0
    """Seed of the order of examples and of every draw in a step, such as dropout. Changes results."""
    evaluate_every: Every = None
    """Evaluate every so many steps, or every epoch, and once at the end; null = never. Changes speed only."""
    evaluate_first: bool = False
    """Evaluate before the first step as well, so that select_on may keep the start. Changes results."""
    select_on: str | None = None
    """Validation figure whose best weights are kept at the end, e.g. ndcg@10; null = the last weights. Changes
    results."""
    select_lowest: bool = False
    """Whether the lowest value of select_on is the best (a loss) instead of the highest. Changes results."""
    patience: int | None = None
    """Stop early after so many evaluations without a better select_on; null = never. Changes results."""
    save_every: Every = "epoch"
    """Write a checkpoint every so many steps, or every epoch; null = only at the end and when interrupted. Changes
    speed only."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep. Changes nothing but disk space."""
    tracker: Literal["none", "tensorboard"] = "none"
    """Where figures go besides train_log.jsonl. Changes nothing else."""
    log_every: int = 10
    """Steps between two lines of train_log.jsonl. Changes nothing else."""
    bucket_by_length: bool = True
    """Batch examples of similar length together, which wastes less padding. Changes results slightly, and speed."""

    def __post_init__(self) -> None:
        if problems := [problem for problem in self._problems() if problem]:
            raise ConfigError("\n".join(problems))

    def batch_size_for(self, num_examples: int) -> int:
        """Return the examples in one optimiser step.

        >>> TrainingConfig(batch_size=None).batch_size_for(3000)
        50
        """
        return self.batch_size or min(256, max(8, num_examples // 60))

    def without_evaluation(self) -> "TrainingConfig":
        """Return the same training where there is nothing to validate on."""
        return replace(self, evaluate_every=None, evaluate_first=False, select_on=None, patience=None)

    def _problems(self) -> list[str | None]:
        limits = (self.num_epochs, self.max_steps, self.max_cpu_seconds)
        endless = "training would never end: set num_epochs, max_steps or max_cpu_seconds"
        unnamed = "patience needs select_on: name the validation figure, e.g. select_on=ndcg@10"
        unseen = "select_on needs evaluate_every: set a number of steps, or epoch"
        unrepeated = "evaluate_first needs evaluate_every: set a number of steps, or epoch"
        return [
            endless if limits == (None, None, None) else None,
            unnamed if self.patience is not None and self.select_on is None else None,
            unseen if self.select_on is not None and self.evaluate_every is None else None,
            unrepeated if self.evaluate_first and self.evaluate_every is None else None,
            *(
                self._positive(name, whole=True)
                for name in ("num_epochs", "max_steps", "batch_size", "gradient_accumulation", "patience")
            ),
            *(self._positive(name, whole=True) for name in ("keep_checkpoints", "log_every")),
            *(self._positive(name) for name in ("max_cpu_seconds", "lr", "head_lr", "clip")),
            *(self._positive(name) for name in ("evaluate_every", "save_every") if getattr(self, name) != "epoch"),
            *(self._share(name, below_one) for name, below_one in (("warmup", False), ("ema", True), ("beta2", True))),
            None if self.seed >= 0 else f"seed: got {self.seed}, expected 0 or more",
            None if self.weight_decay >= 0 else f"weight_decay: got {self.weight_decay}, expected 0 or more",
        ]

    def _positive(self, name: str, whole: bool = False) -> str | None:
        value = getattr(self, name)
        if value is None or (math.isfinite(value) and value >= (1 if whole else 1e-12)):
            return None
        return f"{name}: got {value}, expected {'1 or more' if whole else 'a number above 0'}"

    def _share(self, name: str, below_one: bool) -> str | None:
        value = getattr(self, name)
        if value is None or 0 <= value < 1 or (value == 1 and not below_one):
            return None
        return f"{name}: got {value}, expected 0 or more and {'less than' if below_one else 'at most'} 1"
