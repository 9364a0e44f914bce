"""What stages have been seen to cost, fitted from a request log. Knows no queue and no plan.

What a core has worked on a batch counts, where the log knows it. Elsewhere (several threads, other machines) it is wall
time, and then batches that shared a core count their waiting for each other: take such a log at a low load.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError
from m6rec.serving.lane import Batch
from m6rec.serving.planning.request_log import Logged, RequestLog, Visit
from m6rec.serving.planning.simulator import Work

# Fewer batches than these tell little about a stage.
LEAST_BATCHES = 20


@dataclass(frozen=True)
class StageCost:
    """Seconds of a batch by its size, ``base + each * size``, times what chance makes of it.

    Args:
        base: seconds a batch.
        each: seconds a unit of size.
        ratios: seen seconds over fitted ones, of each request's batch.
    """

    base: float
    each: float
    ratios: NDArray[np.float64]

    def seconds(self, size: float, draw: int) -> float:
        """Return the seconds of a batch.

        Args:
            size: in the stage's unit.
            draw: any number; the same one gives the same chance.
        """
        return (self.base + self.each * size) * float(self.ratios[draw % len(self.ratios)])

    def figures(self) -> dict[str, Any]:
        """Return the fit as plain values."""
        low, high = np.percentile(self.ratios, [5, 95])
        return {
            "base_ms": round(1000 * self.base, 4),
            "each_ms": round(1000 * self.each, 4),
            "ratio_p5": round(float(low), 3),
            "ratio_p95": round(float(high), 3),
            "requests": len(self.ratios),
        }


def fit_cost(sizes: NDArray[np.float64], seconds: NDArray[np.float64], weights: NDArray[np.float64]) -> StageCost:
    """Return the line through batches, by weighted least squares with no part below zero.

    Args:
        sizes: ``[batches]`` in the stage's unit.
        seconds: ``[batches]``.
        weights: ``[batches]``, above 0.
    """
    mean, level = np.average(sizes, weights=weights), np.average(seconds, weights=weights)
    spread = np.average((sizes - mean) ** 2, weights=weights)
    # All of one size: the gain of larger batches is unknown, and not counted on.
    slope = np.average((sizes - mean) * (seconds - level), weights=weights) / spread if spread > 1e-9 else np.inf
    each = float(np.clip(slope, 0.0, level / mean))
    base = float(level - each * mean)
    expected = np.maximum(base + each * sizes, 1e-9)
    return StageCost(base, each, np.maximum(seconds, 1e-9) / expected)


def fit_costs(log: RequestLog) -> dict[str, StageCost]:
    """Return what each stage of a log costs.

    Raises:
        DataError: a stage has been seen too seldom.
    """
    found: dict[str, StageCost] = {}
    for stage in log.head.stages:
        visits = [logged.stages[stage.name] for logged in log.requests if stage.name in logged.stages]
        if stage.kind == "inline" or not visits:
            continue
        # A batch stands in the log once for each of its requests.
        weights = np.array([1 / visit.batch for visit in visits])
        if weights.sum() < LEAST_BATCHES:
            raise DataError(
                f"stage {stage.name!r}: the log has {weights.sum():.0f} of its batches, expected {LEAST_BATCHES} or "
                "more; log for longer"
            )
        sizes = np.array([visit.batch_size for visit in visits], dtype=np.float64)
        seconds = np.array([_seconds(visit) for visit in visits], dtype=np.float64)
        found[stage.name] = fit_cost(sizes, seconds, weights)
    return found


def work_of(costs: Mapping[str, StageCost], seed: int) -> Work:
    """Return how long batches take: the same request meets the same chance under every plan."""

    def seconds(batch: Batch) -> float:
        draw = zlib.crc32(f"{seed}:{batch.stage.name}:{batch.events[0].number}".encode())
        return costs[batch.stage.name].seconds(batch.size, draw)

    return seconds


def rung_shares(log: RequestLog, whole: str) -> dict[str, dict[str, float]]:
    """Return rung -> stage -> a request's work there, as a share of its work on the whole service's rung.

    Args:
        log: what was seen.
        whole: name of the rung of whole service.
    """
    full = _work_by_stage(log.requests, whole)
    shares: dict[str, dict[str, float]] = {}
    for rung in {logged.rung for logged in log.requests} - {whole}:
        own = _work_by_stage(log.requests, rung)
        shares[rung] = {name: min(1.0, seconds / full[name]) for name, seconds in own.items() if full.get(name)}
    return shares


def _seconds(visit: Visit) -> float:
    """Return what a visit's batch took of a core, as far as that is known."""
    return (visit.ms if visit.cpu_ms is None else visit.cpu_ms) / 1000


def _work_by_stage(requests: Sequence[Logged], rung: str) -> dict[str, float]:
    """Return stage -> mean seconds of one request's own part of its batches."""
    seen: dict[str, list[float]] = {}
    for logged in requests:
        if logged.rung == rung:
            for name, visit in logged.stages.items():
                seen.setdefault(name, []).append(_seconds(visit) * visit.size / max(visit.batch_size, 1e-9))
    return {name: float(np.mean(seconds)) for name, seconds in seen.items()}
