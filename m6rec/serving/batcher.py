"""When a batch fires and how large it is: as large as the time that is left allows. Knows no thread and no clock."""

import math
from dataclasses import dataclass

import numpy as np

from m6rec.serving.queues import StageQueue
from m6rec.serving.stage import Event

# Weight of an observation against the one after it: some fifty batches count.
MEMORY = 0.98


class CostModel:
    """Seconds of a batch by its size, ``cost(n) = a + b n``, fitted as batches are seen.

    Least squares with exponentially fading weights. As long as all batches were of one size, all of it counts as ``b``:
    an unknown gain of batching is not counted on. The first batch, which pays for whatever is loaded at first use,
    counts until there is a second.

    Attributes:
        base: ``a``, seconds a batch.
        each: ``b``, seconds a unit of size.
        spread: seconds, standard deviation of what was seen around the line.
    """

    def __init__(self) -> None:
        self.base = self.each = self.spread = 0.0
        # Of 1, n, t, n^2 and n t, over the batches seen; and of the squared errors.
        self._sums, self._error, self._num_batches = np.zeros(5), 0.0, 0

    @property
    def is_known(self) -> bool:
        """Whether a batch has been seen."""
        return self._num_batches > 0

    def cost(self, size: float) -> float:
        """Return the seconds that a batch is expected to take."""
        return self.base + self.each * size

    def bound(self, size: float) -> float:
        """Return the seconds that a batch will seldom exceed."""
        return self.cost(size) + self.spread

    def saw(self, size: float, seconds: float) -> None:
        """Take a batch into the fit."""
        self._num_batches += 1
        if self._num_batches == 2:
            self._sums, self._error = np.zeros(5), 0.0
        elif self.is_known:
            self._error = MEMORY * self._error + (1 - MEMORY) * (seconds - self.cost(size)) ** 2
        self.spread = math.sqrt(self._error)
        self._sums = MEMORY * self._sums + (1.0, size, seconds, size * size, size * seconds)
        self._fit()

    def _fit(self) -> None:
        size, seconds, squares, products = (self._sums[1:] / self._sums[0]).tolist()
        variance, through_zero = squares - size * size, products / max(squares, 1e-12)
        self.base, self.each = 0.0, through_zero
        if variance > 1e-6 * max(1.0, size * size):
            slope = max(0.0, (products - size * seconds) / variance)
            if seconds >= slope * size:
                self.base, self.each = seconds - slope * size, slope


@dataclass(frozen=True)
class Fire:
    """Run these events now."""

    events: list[Event]


@dataclass(frozen=True)
class Wait:
    """Look again at this time (seconds), or when something has changed."""

    until: float


def decide(queue: StageQueue, cost: CostModel, now: float, reserve: float = 0.0) -> Fire | Wait:
    """Return what an idle worker of a stage does.

    It takes the largest batch that ends before the time of any event in it does, the first event at least. With
    ``max_wait_ms`` it waits for a larger one, but never beyond what the events in the queue can spare.

    Args:
        queue: not empty, nothing in it too late.
        cost: of the stage.
        now: seconds.
        reserve: seconds that an event needs in the stages after this one.

    Source: JIZHI (arXiv 2106.01674), batches of a stage; Clipper (arXiv 1612.03079), section 4.3: the largest batch
        that keeps the latency objective.
    """
    plan = queue.stage.plan
    batch, size, slack = _largest(queue, cost, now, reserve)
    could_grow = len(batch) == len(queue) and len(batch) < plan.max_batch and not batch[0].alone
    latest = min(queue.oldest + plan.max_wait_ms / 1000, now + slack - cost.bound(size))
    if could_grow and now < latest:
        return Wait(latest)
    return Fire(batch)


def _largest(queue: StageQueue, cost: CostModel, now: float, reserve: float) -> tuple[list[Event], float, float]:
    """Return the largest batch that is in time, its size, and the smallest slack in it."""
    stage, events = queue.stage, iter(queue)
    first = next(events)
    batch, size, slack = [first], stage.size(first.payload), first.deadline - now - reserve
    if first.alone:
        return batch, size, slack
    bucket = stage.bucket(first.payload)
    for event in events:
        if len(batch) == stage.plan.max_batch:
            break
        if event.alone or stage.bucket(event.payload) != bucket:
            continue
        grown, least = size + stage.size(event.payload), min(slack, event.deadline - now - reserve)
        if cost.bound(grown) > least:
            break
        batch.append(event)
        size, slack = grown, least
    return batch, size, slack
