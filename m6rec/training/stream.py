"""The order of training examples: shuffled by epoch, batched by length, shared out among processes.

Everything is a pure function of (seed, epoch, batch), so a run can be taken up at any batch and by any number of
processes, and every example is counted once an epoch. This module knows no task, model or tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.training.config import TrainingConfig

# Batches that are sorted by length together: enough for little padding, few enough to stay random.
WINDOW = 50


@dataclass(frozen=True)
class Piece:
    """What one process runs forward and backward at once.

    Args:
        indices: which examples.
        counted: ``False`` for a stand-in: a process without a share still has to run something, at weight zero.
    """

    indices: tuple[int, ...]
    counted: bool = True


def epoch_batches(
    num_examples: int, batch_size: int, seed: int, epoch: int, lengths: Sequence[int] | None = None
) -> list[NDArray[np.int64]]:
    """Return the batches of one epoch: every example once, at most one batch short.

    Args:
        num_examples: how many examples there are.
        batch_size: examples in a batch.
        seed: of the run.
        epoch: a new order for each.
        lengths: each example's length; batches then hold examples of similar length.

    >>> [batch.tolist() for batch in epoch_batches(5, 2, seed=0, epoch=0)]
    [[2, 4], [3, 0], [1]]
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(num_examples)
    if lengths is None:
        return [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
    sizes, width = np.asarray(lengths), WINDOW * batch_size
    windows = [order[start : start + width] for start in range(0, num_examples, width)]
    order = np.concatenate([window[np.argsort(sizes[window], kind="stable")] for window in windows])
    batches = [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def share_out(batch: NDArray[np.int64], rank: int, num_processes: int, accumulation: int) -> list[Piece]:
    """Return the pieces of ``batch`` that process ``rank`` runs, in order.

    The pieces of all processes together are the batch, each example once. They are taken in strides, so that a batch
    sorted by length gives every process the same work.

    >>> share_out(np.arange(5), rank=1, num_processes=2, accumulation=2)
    [Piece(indices=(1,), counted=True), Piece(indices=(3,), counted=True)]
    """
    parts = num_processes * accumulation
    mine = [batch[rank + turn * num_processes :: parts] for turn in range(accumulation)]
    pieces = [Piece(tuple(part.tolist())) for part in mine if len(part)]
    return pieces or [Piece((int(batch[0]),), counted=False)]


class Stream:
    """The examples of a run, as seen by one process.

    Args:
        num_examples: how many examples there are.
        batch_size: examples in a batch, over all processes.
        seed: of the run.
        lengths: each example's length, for batches of similar length.
        accumulation: pieces that each process cuts its share into.
        rank: which process this is.
        num_processes: how many there are.

    Attributes:
        num_batches: batches in an epoch.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        accumulation: int = 1,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_examples, self.batch_size, self.seed, self.lengths = num_examples, batch_size, seed, lengths
        self.accumulation, self.rank, self.num_processes = accumulation, rank, num_processes
        self.num_batches = -(-num_examples // batch_size)
        self._epoch, self._batches = -1, list[NDArray[np.int64]]()

    @classmethod
    def of(
        cls,
        config: TrainingConfig,
        num_examples: int,
        lengths: Sequence[int] | None,
        rank: int = 0,
        num_processes: int = 1,
    ) -> "Stream":
        """Return the stream that a training goes through."""
        return cls(
            num_examples,
            config.batch_size_for(num_examples),
            seed=config.seed,
            lengths=lengths if config.bucket_by_length else None,
            accumulation=config.gradient_accumulation,
            rank=rank,
            num_processes=num_processes,
        )

    def batch(self, epoch: int, index: int) -> NDArray[np.int64]:
        """Return the examples of batch ``index`` of ``epoch``, over all processes."""
        if epoch != self._epoch:
            self._batches = epoch_batches(self.num_examples, self.batch_size, self.seed, epoch, self.lengths)
            self._epoch = epoch
        return self._batches[index]

    def pieces(self, epoch: int, index: int) -> list[Piece]:
        """Return what this process runs of batch ``index`` of ``epoch``."""
        return share_out(self.batch(epoch, index), self.rank, self.num_processes, self.accumulation)
