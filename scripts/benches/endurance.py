"""What a server's memory does over minutes of load. Knows neither the server nor its models."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m6rec.serving.planning.load import poisson

# Before memory counts: caches and allocators have their first fill. In a whole run a minute before ten.
WARM_UP = 1 / 11
EVERY_S = 2.0


class Asked(Protocol):
    """A server that answers requests by their number, and says what it uses."""

    async def order(self, order: dict[str, Any]) -> Any: ...

    async def open_loop(self, rows: list[int], times: NDArray[np.float64], ms: float) -> list[dict[str, Any]]: ...


async def endure(server: Asked, rows: list[int], rate: float, slo_ms: float) -> dict[str, Any]:
    """Ask for a number of requests at a steady rate, and return what memory did meanwhile.

    Args:
        server: under load.
        rows: of requests, in their order.
        rate: a second.
        slo_ms: that each has.
    """
    times = poisson(rate, len(rows), np.random.default_rng(2))
    asking = asyncio.create_task(server.open_loop(rows, times, slo_ms))
    seen = []
    while not asking.done():
        seen.append(await server.order({"used": True}))
        await asyncio.wait([asking], timeout=EVERY_S)
    answers = await asking
    in_time = sum("items" in answer and answer["latency_ms"] <= slo_ms for answer in answers)
    return {**growth(seen), "requests": len(rows), "seconds": float(times[-1]), "in_time": in_time / len(rows)}


def growth(seen: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how memory, and what the tiers say that they hold, grew after the warm-up: medians of a window each.

    >>> growth([{"memory": 2**20 * n, "report": {}} for n in (9, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6)])["memory_growth_mb"]
    1.0
    """
    first, window = max(1, round(WARM_UP * len(seen))), max(1, len(seen) // 20)
    memory = np.array([each["memory"] for each in seen]) / 2**20
    tiers = np.array([held(each["report"]) for each in seen]) / 2**20

    def grown(values: NDArray[np.float64]) -> float:
        return float(np.median(values[-window:]) - np.median(values[first : first + window]))

    return {"memory_growth_mb": grown(memory), "tiers_growth_mb": grown(tiers), "course_mb": memory.round(1).tolist()}


def held(report: Mapping[str, Any]) -> int:
    """Return the bytes that all tiers in memory hold."""
    return sum(own["used_bytes"] for name, own in report.get("tiers", {}).items() if name != "disk")
