"""Requests that come at their own times, whoever is ready for them, and what becomes of each. Knows no executor."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DeadlineError, M6RecError, OverloadedError, ServingError


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
class LoadReport:
    """What became of each request.

    Args:
        at: ``[requests]`` arrivals, in seconds, in order.
        latency: ``[requests]`` seconds until the answer; NaN = there was none.
        outcomes: ``answered``, ``refused``, ``expired``, ``failed`` or ``bad`` (the caller's mistake), one a request.
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


def outcome_of(found: Mapping[str, Any] | M6RecError) -> str:
    """Return what became of a request, by its answer or the error that it got instead."""
    if isinstance(found, Mapping):
        return "answered"
    if isinstance(found, OverloadedError):
        return "refused"
    if isinstance(found, DeadlineError):
        return "expired"
    return "failed" if isinstance(found, ServingError) else "bad"


def poisson(rate: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return arrival times in seconds, from 0 on, at a mean rate a second."""
    return np.cumsum(rng.exponential(1 / rate, count))
