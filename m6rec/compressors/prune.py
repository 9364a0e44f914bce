"""Gradual magnitude pruning: the smallest weights become zero while training goes on. Knows no loop."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m6rec.backbones.base import Backbone
from m6rec.compressors.base import Subject
from m6rec.compressors.cost import Size
from m6rec.compressors.weights import bare_copy, train_whole
from m6rec.errors import ConfigError
from m6rec.tasks.base import Loss, Task, WrappedTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruneConfig:
    """How many weights go, and how fast."""

    sparsity: float = 0.8
    """Share of every matrix and table that is zero at the end. Changes results."""
    ramp: int = 100
    """Batches over which it is reached. Changes results."""
    distil: bool = False
    """Whether the pruned model also learns to relate tokens as the run's own does. Changes results."""

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.sparsity < 1:
            problems.append(f"sparsity: got {self.sparsity}, expected 0 or more and less than 1")
        if self.ramp < 1:
            problems.append(f"ramp: got {self.ramp}, expected 1 or more")
        if problems:
            raise ConfigError("\n".join(problems))


class Prune:
    """Set the smallest weights to zero, more with every batch, while the run's recipe trains on.

    It makes the model small to keep, not fast: zeros are multiplied like any number. See ``structured`` for speed.

    Args:
        config: sparsity and its ramp.

    Source: Zhu and Gupta (arXiv 1710.01878): the cubic ramp; M6-Rec (arXiv 2205.08084), M6-Edge: 80 %.
    """

    Config = PruneConfig

    def __init__(self, config: PruneConfig | None = None) -> None:
        self.config = config or PruneConfig()

    def compress(self, subject: Subject, out: Path) -> dict[str, Any]:
        """Train while pruning, and return sizes and quality."""
        bare = bare_copy(subject)
        return train_whole(subject, bare, Size.of(bare.model), out, wrap=self._wrap, distil=self.config.distil)

    def _wrap(self, task: Task, backbone: Backbone) -> Task:
        return SparseTask(task, self.config)


class SparseTask(WrappedTask):
    """A task before whose every batch the smallest weights of the backbone are set to zero.

    A weight that the optimiser moves away from zero may come back as long as others are smaller.

    Args:
        inner: the task.
        config: sparsity and its ramp.
    """

    batches: Tensor

    def __init__(self, inner: Task, config: PruneConfig) -> None:
        super().__init__(inner)
        self.config = config
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))  # a buffer: checkpoints keep it

    def loss(self, backbone: Backbone, batch: Any) -> Loss:
        """Prune to where the ramp stands, and return the task's loss."""
        self.batches += 1
        share = sparsity_at(int(self.batches), self.config)
        prune(backbone, share)
        loss = self.inner.loss(backbone, batch)
        return Loss(loss.value, loss.weight, loss.figures | {"sparsity": share})

    def finish(self, backbone: Backbone) -> None:
        """Prune to the end: averaged weights are less sparse than those they are averaged from."""
        if self.batches < self.config.ramp:
            logger.warning(
                "training ended after %d of %d batches of the ramp: the rest is pruned untrained, set ramp lower",
                int(self.batches),
                self.config.ramp,
            )
        prune(backbone, self.config.sparsity)
        super().finish(backbone)


def sparsity_at(batch: int, config: PruneConfig) -> float:
    """Return the share of zeros after so many batches: fast at first, when much is redundant, then ever slower.

    >>> [round(sparsity_at(batch, PruneConfig(sparsity=0.8, ramp=4)), 2) for batch in (0, 1, 2, 4, 9)]
    [0.0, 0.46, 0.7, 0.8, 0.8]
    """
    left = 1 - min(1.0, batch / config.ramp)
    return config.sparsity * (1 - left**3)


@torch.no_grad()
def prune(backbone: Backbone, share: float) -> None:
    """Set the smallest ``share`` of every matrix and table of a backbone to zero, in place."""
    for weight in matrices(backbone.model):
        count = int(share * weight.numel())
        if count:
            size = weight.abs()
            weight.masked_fill_(size <= size.flatten().kthvalue(count).values, 0.0)


def matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield every matrix and table, each once; norms and biases are few and matter."""
    yield from (weight for weight in model.parameters() if weight.ndim >= 2)
