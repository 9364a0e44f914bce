"""Fake stages and a clock that only the test moves: what the tests of serving share."""

from collections.abc import Callable
from typing import Any

from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch
from m6rec.serving.scheduler import Scheduler
from m6rec.serving.shedding import Ladder
from m6rec.serving.stage import Stage, StagePlan


def adding(name: str, value: Any = 1) -> Callable[[Any], list[dict[str, Any]]]:
    """Return a stage's ``run`` that adds one field."""
    return lambda payloads: [{name: value} for _ in payloads]


def respond(payloads: Any) -> list[dict[str, Any]]:
    return [
        {"answer": {"items": [payload["request"].get("n"), *sorted(set(payload) & {"a", "b", "c"})]}}
        for payload in payloads
    ]


def parse(payloads: Any) -> list[dict[str, Any]]:
    return [{"key": payload["request"].get("key")} for payload in payloads]


def line(*, ladder: Ladder | None = None, version: str = "0", close: Any = None, **plan: Any) -> Graph:
    """Return parse (at the door) -> work -> respond."""
    stages = (
        Stage("parse", parse, kind="inline", at_door=True),
        Stage("work", adding("a"), ("parse",), plan=StagePlan(**plan)),
        Stage("respond", respond, ("work",), kind="inline"),
    )
    more = {} if close is None else {"close": close}
    return Graph(stages, version=version, ladder=ladder or Ladder(), **more)


class Course:
    """A scheduler under a clock of its own, with workers that take as long as they are told.

    Args:
        graph: to run.
        costs: stage -> seconds of a batch by its size.
    """

    def __init__(self, graph: Graph, **costs: Callable[[float], float]) -> None:
        self.now, self.scheduler, self.costs = 0.0, Scheduler(graph, 0.0), costs
        self.running: list[tuple[float, Batch]] = []
        self.batches: list[tuple[str, list[int], float]] = []
        self.answers: dict[int, Any] = {}
        self.at: dict[int, float] = {}

    def ask(self, number: int, deadline: float = 1.0, kind: str = "recommend", **request: Any) -> Any:
        def done(outcome: Any) -> None:
            self.answers[number], self.at[number] = outcome, self.now

        ticket = self.scheduler.submit({"n": number, **request}, kind, self.now, self.now + deadline, done)
        self.begin()
        return ticket

    def begin(self) -> None:
        for batch in self.scheduler.ready(self.now):
            numbers = [event.payload["request"]["n"] for event in batch.events]
            self.batches.append((batch.stage.name, numbers, self.now))
            cost = self.costs.get(batch.stage.name, lambda size: 0.0)
            self.running.append((self.now + cost(batch.size), batch))

    def until(self, time: float) -> "Course":
        """Let time pass."""
        while True:
            ends = min((end for end, _ in self.running), default=float("inf"))
            wake = self.scheduler.wake(self.now)
            moment = min(ends, float("inf") if wake is None else wake)
            if moment > time:
                break
            self.now = max(self.now, moment)
            through = [pair for pair in self.running if pair[0] <= self.now]
            self.running = [pair for pair in self.running if pair[0] > self.now]
            for _, batch in through:
                self.scheduler.finished(batch, outcomes_of(batch), self.now)
            self.begin()
        self.now = time
        return self


def outcomes_of(batch: Batch) -> Any:
    try:
        return batch.stage.run([event.payload for event in batch.events])
    except Exception as error:  # noqa: BLE001 - as the real workers do
        return error
