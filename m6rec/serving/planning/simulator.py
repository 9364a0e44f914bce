"""A graph under load in virtual time: the real scheduler, with workers that take as long as they are told.

Everything that decides is the very code that serves (:class:`~m6rec.serving.scheduler.Scheduler` with its queues,
batcher, admission and ladder); only the clock and the workers are made up here. Knows no log and no model, and nothing
of what happens outside the graph: HTTP, the interpreter's lock, other programs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m6rec.errors import M6RecError
from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch
from m6rec.serving.planning.load import Arrival, LoadReport, outcome_of
from m6rec.serving.scheduler import Scheduler
from m6rec.serving.stage import run_batch

Work = Callable[[Batch], float]
"""Returns the seconds that a batch takes on cores of its own."""
# Virtual seconds below which two moments are one.
_EPSILON = 1e-9


@dataclass
class Clock:
    """What stages read the time from, where it passes only in numbers.

    Args:
        now: seconds.
    """

    now: float = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


def simulate(
    graph: Graph,
    arrivals: Sequence[Arrival],
    work: Work,
    cores: float = 1.0,
    threads: int = 1,
    clock: Clock | None = None,
) -> LoadReport:
    """Return what becomes of requests in a graph.

    Args:
        graph: its stages' ``run`` is called when a batch ends, so what they find may steer the request.
        arrivals: in order of time.
        work: how long a batch takes.
        cores: that all batches share evenly.
        threads: cores that one batch keeps busy.
        clock: goes along, for stages that tell the time.

    Source: JIZHI (arXiv 2106.01674), the resource manager searches plans on historical logs. Differs: by simulation,
        on the policy code that serves.
    """
    return _Simulation(graph, arrivals, work, cores / threads, clock or Clock()).run()


@dataclass
class _Cores:
    """Batches that run side by side; with more of them than cores, each is slowed down equally.

    Args:
        places: batches that run at full speed.
    """

    places: float
    left: dict[Batch, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        return min(1.0, self.places / max(1, len(self.left)))

    @property
    def seconds(self) -> float:
        """Until the first batch ends."""
        return min(self.left.values(), default=float("inf")) / self.speed

    def pass_by(self, seconds: float) -> list[Batch]:
        """Let time pass, and return the batches that have ended."""
        done = seconds * self.speed
        self.left = {batch: left - done for batch, left in self.left.items()}
        ended = [batch for batch, left in self.left.items() if left <= _EPSILON]
        for batch in ended:
            del self.left[batch]
        return ended


class _Simulation:
    def __init__(self, graph: Graph, arrivals: Sequence[Arrival], work: Work, places: float, clock: Clock) -> None:
        self.arrivals, self.work, self.cores, self.clock = arrivals, work, _Cores(places), clock
        self.now = clock.now = arrivals[0].at if arrivals else 0.0
        self.scheduler = Scheduler(graph, self.now)
        self.cpu_seconds = 0.0
        self.latency = np.full(len(arrivals), np.nan)
        self.outcomes, self.rungs = [""] * len(arrivals), [""] * len(arrivals)

    def run(self) -> LoadReport:
        coming = 0
        while True:
            arrival = self.arrivals[coming].at if coming < len(self.arrivals) else float("inf")
            wake = self.scheduler.wake(self.now)
            moment = min(arrival, self.now + self.cores.seconds, float("inf") if wake is None else wake)
            if moment == float("inf"):
                break
            self._pass(max(self.now, moment))
            while coming < len(self.arrivals) and self.arrivals[coming].at <= self.now:
                self._arrive(coming)
                coming += 1
            self._begin()
        at = np.array([arrival.at for arrival in self.arrivals])
        return LoadReport(at, self.latency, tuple(self.outcomes), tuple(self.rungs), self.cpu_seconds)

    def _pass(self, moment: float) -> None:
        ended = self.cores.pass_by(moment - self.now)
        self.now = self.clock.now = moment
        for batch in ended:
            self.scheduler.finished(batch, run_batch(batch.stage, batch.events), self.now)

    def _arrive(self, number: int) -> None:
        arrival = self.arrivals[number]

        def done(found: dict[str, Any] | M6RecError) -> None:
            self.outcomes[number] = outcome_of(found)
            if isinstance(found, dict):
                self.latency[number], self.rungs[number] = self.now - arrival.at, found["rung"]

        self.scheduler.submit(arrival.request, arrival.kind, self.now, arrival.at + arrival.within, done)

    def _begin(self) -> None:
        for batch in self.scheduler.ready(self.now):
            seconds = self.work(batch)
            self.cpu_seconds += seconds
            self.cores.left[batch] = seconds
