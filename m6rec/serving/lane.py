"""A stage at work: its queue, its workers, and the cost that it has been seen to have. Knows no thread."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from m6rec.serving.batcher import CostModel
from m6rec.serving.queues import StageQueue
from m6rec.serving.stage import Event, Payload, Stage


@dataclass(eq=False)
class Batch:
    """Events that one worker runs together.

    Args:
        stage: that runs them.
        events: one at least.
        size: work in it, in the stage's unit.
        began: seconds.
    """

    stage: Stage
    events: list[Event]
    size: float
    began: float

    def figures(self, event: Event, now: float) -> dict[str, Any]:
        """Return what one event's trace says of it."""
        waited, ran = self.began - event.entered[self.stage.name], now - self.began
        size = self.stage.size(event.payload)
        ends = {"wait_ms": round(1000 * waited, 3), "ms": round(1000 * ran, 3)}
        return {**ends, "size": size, "batch": len(self.events), "batch_size": self.size}


class Lane:
    """A stage at work.

    What finds the queue full stands before it, and keeps the worker that brought it: so a slow stage holds back those
    before it, up to admission.

    Args:
        stage: that is queued for.

    Attributes:
        wake: when an idle worker will not wait for a larger batch any longer; ``None`` = no worker waits.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.queue, self.cost = stage, StageQueue(stage), CostModel()
        self.running: list[Batch] = []
        self.wake: float | None = None
        self._before: deque[Event] = deque()
        self._hung: set[Batch] = set()
        self._coming: dict[Event, float] = {}

    @property
    def num_hung(self) -> int:
        """Workers that hang."""
        return len(self._hung)

    @property
    def is_dead(self) -> bool:
        """Whether more workers hang than are replaced."""
        return len(self._hung) > self.stage.plan.spares

    @property
    def is_idle(self) -> bool:
        """Whether nothing is here."""
        return not self.running and not len(self.queue)

    @property
    def is_overfull(self) -> bool:
        """Whether events stand before a full queue."""
        return bool(self._before)

    @property
    def has_worker(self) -> bool:
        """Whether a worker is idle."""
        return len(self.running) < self.stage.plan.workers and not self.is_dead

    @property
    def hung_at(self) -> float:
        """When the first batch under way counts as hung, in seconds."""
        return min((batch.began for batch in self.running), default=math.inf) + self.stage.plan.limit_ms / 1000

    def expect(self, event: Event) -> None:
        """Count on an event that has been admitted and will come here."""
        self._coming[event] = self.stage.size(event.payload)

    def forget(self, event: Event) -> None:
        """No longer count on an event: it is through, or over."""
        self._coming.pop(event, None)

    def backlog(self, now: float) -> float:
        """Return the seconds that all work will take which is here, or on its way here."""
        plan = self.stage.plan
        num_batches = math.ceil(len(self._coming) / plan.max_batch)
        work = self.cost.each * sum(self._coming.values()) + self.cost.base * num_batches
        done = sum(min(now - batch.began, self.cost.cost(batch.size)) for batch in self.running)
        return max(0.0, work - done) / plan.workers

    def batch_seconds(self, payload: Payload) -> float:
        """Return the seconds of a batch of a request and those that wait, at most of one that makes batches pay.

        Who is let in with less time than that makes the batch small that it heads, so that all behind are later still
        and head smaller ones: under load it would end in batches of one. At four times the base, a batch does three
        quarters of what the largest could.
        """
        own = self.stage.size(payload)
        together = self.cost.cost(own * min(self.stage.plan.max_batch, len(self.queue) + 1))
        return max(self.cost.cost(own), min(4 * self.cost.base, together))

    def share(self, now: float) -> float:
        """Return the backlog as a share of the time that the newest event in the queue has in all; 0 = none waits."""
        newest = self.queue.newest
        return 0.0 if newest is None else self.backlog(now) / max(1e-9, newest.deadline - newest.arrived)

    def enter(self, event: Event, now: float) -> None:
        """Take an event in, or let it stand before the full queue."""
        event.entered[self.stage.name] = now
        if self.is_overfull or not self.queue.put(event):
            self._before.append(event)

    def let_in(self) -> None:
        """Let events that stand before the queue in, as far as there is room."""
        while self._before and self.queue.put(self._before[0]):
            self._before.popleft()

    def begin(self, events: list[Event], now: float) -> Batch:
        """Take events out as a batch that begins now."""
        self.queue.take(events)
        self.let_in()
        batch = Batch(self.stage, events, sum(self.stage.size(event.payload) for event in events), now)
        self.running.append(batch)
        return batch

    def end(self, batch: Batch) -> bool:
        """Let a batch's worker go; ``False`` = it had been given up, and nobody waits for what it found."""
        if batch in self._hung:
            self._hung.remove(batch)
            return False
        self.running.remove(batch)
        return True

    def hanging(self, now: float) -> list[Batch]:
        """Give up and return the batches that have run for too long."""
        late = [batch for batch in self.running if now - batch.began >= self.stage.plan.limit_ms / 1000]
        for batch in late:
            self.running.remove(batch)
            self._hung.add(batch)
        return late
