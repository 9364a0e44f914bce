"""A graph under load in virtual time: the real scheduler, with workers that take as long as they are told.

Everything that decides is the very code that serves (:class:`~m6rec.serving.scheduler.Scheduler` with its queues,
batcher, admission and ladder); only the clock and the workers are made up here. Knows no log and no model, and nothing
of what happens outside the graph: HTTP, the interpreter's lock, other programs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DeadlineError, M6RecError, OverloadedError
from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch
from m6rec.serving.scheduler import Scheduler
from m6rec.serving.stage import run_batch

Work = Callable[[Batch], float]
"""Returns the seconds that a batch takes on cores of its own."""
# Virtual seconds below which two moments are one.
_EPSILON = 1e-9


@dataclass(frozen=True)
class Arrival:
    """One request on its way to the door.

    Args:
        at: seconds.
        request: what the graph's stages understand.
        within: seconds that it has.
        kind: of request.
    """

    at: float
    request: Mapping[str, Any]
    within: float
    kind: str = "recommend"


@dataclass(frozen=True)
class Simulated:
    """What became of each request.

    Args:
        at: ``[requests]`` arrivals, in seconds, in order.
        latency: ``[requests]`` seconds until the answer; NaN = there was none.
        outcomes: ``answered``, ``refused``, ``expired`` or ``failed``, one a request.
        rungs: what made each answer; empty = there was none.
        cpu_seconds: of all batches together.
    """

    at: NDArray[np.float64]
    latency: NDArray[np.float64]
    outcomes: tuple[str, ...]
    rungs: tuple[str, ...]
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        """How long requests came: as many gaps as requests."""
        count = len(self.at)
        return 0.0 if count < 2 else float((self.at[-1] - self.at[0]) * count / (count - 1))

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return self.outcomes.count("answered") / self.seconds if self.seconds else 0.0

    def share(self, outcome: str) -> float:
        """Return the share of requests with an outcome."""
        return self.outcomes.count(outcome) / max(1, len(self.outcomes))

    def percentile_ms(self, q: float) -> float:
        """Return a percentile of the latency of what was answered; infinite where nothing was."""
        answered = self.latency[~np.isnan(self.latency)]
        return float(1000 * np.percentile(answered, q)) if len(answered) else float("inf")

    def figures(self) -> dict[str, Any]:
        """Return a summary as plain values."""
        rungs = Counter(rung for rung in self.rungs if rung)
        return {
            "requests": len(self.outcomes),
            "offered": round(len(self.outcomes) / self.seconds, 3) if self.seconds else 0.0,
            "goodput": round(self.goodput, 3),
            **{f"p{q}_ms": round(self.percentile_ms(q), 3) for q in (50, 95, 99)},
            **{outcome: round(self.share(outcome), 5) for outcome in ("refused", "expired", "failed")},
            "rungs": {rung: round(count / len(self.outcomes), 5) for rung, count in sorted(rungs.items())},
            "cpu_ms_a_request": round(1000 * self.cpu_seconds / max(1, len(self.outcomes)), 4),
        }


def simulate(graph: Graph, arrivals: Sequence[Arrival], work: Work, cores: float = 1.0, threads: int = 1) -> Simulated:
    """Return what becomes of requests in a graph.

    Args:
        graph: its stages' ``run`` is called when a batch ends, so what they find may steer the request.
        arrivals: in order of time.
        work: how long a batch takes.
        cores: that all batches share evenly.
        threads: cores that one batch keeps busy.

    Source: JIZHI (arXiv 2106.01674), the resource manager searches plans on historical logs. Differs: by simulation,
        on the policy code that serves.
    """
    return _Simulation(graph, arrivals, work, cores / threads).run()


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
    def __init__(self, graph: Graph, arrivals: Sequence[Arrival], work: Work, places: float) -> None:
        self.arrivals, self.work, self.cores = arrivals, work, _Cores(places)
        self.now = arrivals[0].at if arrivals else 0.0
        self.scheduler = Scheduler(graph, self.now)
        self.cpu_seconds = 0.0
        self.latency = np.full(len(arrivals), np.nan)
        self.outcomes, self.rungs = [""] * len(arrivals), [""] * len(arrivals)

    def run(self) -> Simulated:
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
        return Simulated(at, self.latency, tuple(self.outcomes), tuple(self.rungs), self.cpu_seconds)

    def _pass(self, moment: float) -> None:
        ended = self.cores.pass_by(moment - self.now)
        self.now = moment
        for batch in ended:
            self.scheduler.finished(batch, run_batch(batch.stage, batch.events), self.now)

    def _arrive(self, number: int) -> None:
        arrival = self.arrivals[number]

        def done(found: dict[str, Any] | M6RecError) -> None:
            self.outcomes[number] = _outcome(found)
            if isinstance(found, dict):
                self.latency[number], self.rungs[number] = self.now - arrival.at, found["rung"]

        self.scheduler.submit(arrival.request, arrival.kind, self.now, arrival.at + arrival.within, done)

    def _begin(self) -> None:
        for batch in self.scheduler.ready(self.now):
            seconds = self.work(batch)
            self.cpu_seconds += seconds
            self.cores.left[batch] = seconds


def _outcome(found: dict[str, Any] | M6RecError) -> str:
    if isinstance(found, dict):
        return "answered"
    if isinstance(found, OverloadedError):
        return "refused"
    return "expired" if isinstance(found, DeadlineError) else "failed"


def poisson(rate: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return arrival times in seconds, from 0 on, at a mean rate a second."""
    return np.cumsum(rng.exponential(1 / rate, count))
