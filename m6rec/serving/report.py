"""What has happened, in numbers: outcomes, rungs, times of each stage. Knows no clock and no format of metrics."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch, Lane

OUTCOMES = ("answered", "refused", "expired", "failed", "bad", "cancelled", "shared")
# Times that percentiles are of.
RECENT = 2048


@dataclass
class StageTally:
    """What one stage has done.

    Args:
        done: events that it ran.
        dropped: events that were too late, or nobody's any more, when it took them out.
        failed: events that it raised on.
        wait_ms: of the last events.
        run_ms: of the last batches.
        batches: size -> count.
    """

    done: int = 0
    dropped: int = 0
    failed: int = 0
    wait_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    run_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    batches: Counter[int] = field(default_factory=Counter)


class Tally:
    """Counts of a scheduler.

    Args:
        graph: that it runs.
    """

    def __init__(self, graph: Graph) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.rungs: Counter[str] = Counter()
        self.latency_ms: deque[float] = deque(maxlen=RECENT)
        self.stages = {stage.name: StageTally() for stage in graph.order}

    def count(self, outcome: str) -> None:
        """Count a request's outcome."""
        self.outcomes[outcome] += 1

    def answered(self, rung: str, seconds: float) -> None:
        """Count an answer."""
        self.count("answered")
        self.rungs[rung] += 1
        self.latency_ms.append(1000 * seconds)

    def ran(self, stage: str, batch: Batch, now: float) -> None:
        """Count a batch that has ended."""
        own = self.stages[stage]
        own.done += len(batch.events)
        own.batches[len(batch.events)] += 1
        own.run_ms.append(1000 * (now - batch.began))
        own.wait_ms.extend(1000 * (batch.began - event.entered[stage]) for event in batch.events)

    def passed(self, stage: str) -> None:
        """Count an event that a stage without a queue is through with."""
        self.stages[stage].done += 1

    def dropped(self, stage: str) -> None:
        """Count an event that was taken out unread."""
        self.stages[stage].dropped += 1

    def failed(self, stage: str) -> None:
        """Count an event that a stage raised on."""
        self.stages[stage].failed += 1

    def of_stage(self, name: str, lane: Lane | None) -> dict[str, Any]:
        """Return a stage's figures as plain values; an inline one has no lane."""
        own = self.stages[name]
        found: dict[str, Any] = {"done": own.done, "dropped": own.dropped, "failed": own.failed}
        if lane is None:
            return found
        return found | {
            "queued": len(lane.queue),
            "running": len(lane.running),
            "hung": lane.num_hung,
            "wait_ms": percentiles(own.wait_ms),
            "run_ms": percentiles(own.run_ms),
            "batches": dict(sorted(own.batches.items())),
            "cost_ms": {"base": 1000 * lane.cost.base, "each": 1000 * lane.cost.each},
        }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return p50, p95 and p99; zeros of nothing.

    >>> percentiles([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    found = np.fromiter(values, dtype=np.float64)
    if not len(found):
        return {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    return {f"p{q}": float(np.percentile(found, q)) for q in (50, 95, 99)}
