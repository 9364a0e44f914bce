"""A request log with costs that the test knows: what the planner's tests fit, simulate and search on."""

from pathlib import Path

import numpy as np

from m6rec.config import plain
from m6rec.serving.planning.load import poisson
from m6rec.serving.planning.request_log import FORMAT, Logged, LoggedStage, LogHead, RequestLog, Visit
from m6rec.serving.shedding import Ladder, Rung
from m6rec.serving.stage import StagePlan

STAGES = (
    LoggedStage("parse", (), "inline"),
    LoggedStage("encode", ("parse",), plan=StagePlan(max_batch=1)),
    LoggedStage("filter", ("encode",), "inline"),
    LoggedStage("rank", ("filter",), plan=StagePlan(max_batch=1)),
    LoggedStage("respond", ("rank",), "inline"),
)
LADDER = Ladder((Rung("full"), Rung("fewer", candidates=10), Rung("popular", model=False)))
COSTS = {"encode": (0.008, 0.002), "rank": (0.004, 0.0001)}
"""Stage -> base and each, in seconds."""


def make_log(
    count: int = 600, rate: float = 20.0, keys: int = 10_000, seed: int = 0, threads: int = 1, **head: float
) -> RequestLog:
    """Return a log of a server that keeps up: Poisson arrivals, keys by a power law, 20 % noise."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, keys + 1)
    drawn = rng.choice(keys, count, p=weights / weights.sum())
    requests = []
    for at, key in zip(poisson(rate, count, rng), drawn, strict=True):
        sizes = {"encode": 1.0, "rank": float(20 + key % 60)}
        batch = int(rng.choice([1, 1, 2, 4]))
        visits = {
            name: Visit(
                ms=1000 * (base + each * size * batch) * rng.uniform(0.8, 1.2),
                size=size,
                batch=batch,
                batch_size=size * batch,
            )
            for (name, size), (base, each) in zip(sizes.items(), COSTS.values(), strict=True)
        }
        ms = sum(visit.ms for visit in visits.values())
        requests.append(
            Logged(1.6e9 + at, f"k{key}", deadline_ms=250.0, ms=ms, answer_bytes=900, rung="full", stages=visits)
        )
    return RequestLog(LogHead(FORMAT, "0", STAGES, LADDER, threads=threads, **head), tuple(requests))


def write_log(log: RequestLog, path: Path) -> Path:
    """Write a log as the logger does."""
    import json

    path.write_text("".join(json.dumps(plain(each)) + "\n" for each in (log.head, *log.requests)), encoding="utf-8")
    return path
