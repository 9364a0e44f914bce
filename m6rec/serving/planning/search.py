"""Which plan is best for a log's traffic: many are simulated, fewer and longer ones at a time. Knows no model.

A plan is found on the first part of a log and judged on the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m6rec.errors import ConfigError
from m6rec.serving.planning.costs import StageCost, fit_costs, rung_shares, work_of
from m6rec.serving.planning.load import LoadReport
from m6rec.serving.planning.plan import Plan
from m6rec.serving.planning.request_log import RequestLog
from m6rec.serving.planning.shadow import Shares, Traffic, shadow_graph
from m6rec.serving.planning.simulator import Clock, simulate
from m6rec.serving.stage import StagePlan

BATCHES, WAITS_MS, QUEUES = (1, 2, 4, 8, 16, 32), (0.0, 1.0, 2.0, 5.0, 10.0, 20.0), (8, 16, 32, 64, 128, 256)
# Of the room for caches, what the query cache is given; the segments get what is left.
ROOMS = (0.0, 0.01, 0.05, 0.25, 1.0)
# Requests that may be lost, or answered by less than the whole service, for a plan to count as one that keeps up.
SPARED = 0.01


@dataclass(frozen=True)
class SearchConfig:
    """How a plan is looked for."""

    cores: float = 1.0
    """Cores that the server has; changes the plan."""
    load: float = 1.0
    """Times the log's own traffic that the plan is for; changes the plan."""
    deadline_ms: float | None = None
    """How long a request may take; changes the plan. Default: what each had."""
    cache_bytes: int | None = None
    """Memory for caches, to be split; changes the plan. Default: the query cache as it was, segments as they were."""
    trials: int = 32
    """Plans that are tried; a power of two. More find better ones."""
    window: float = 0.6
    """Share of the log, from its start, that the plan is found on; it is judged on the rest."""
    seed: int = 0
    """Of the plans that are tried, and of the simulated times."""

    def __post_init__(self) -> None:
        checks = (
            ("cores", "more than 0", self.cores > 0),
            ("load", "more than 0", self.load > 0),
            ("deadline_ms", "more than 0", self.deadline_ms is None or self.deadline_ms > 0),
            ("trials", "a power of two from 4 on", self.trials >= 4 and self.trials & (self.trials - 1) == 0),
            ("window", "more than 0 and less than 1", 0 < self.window < 1),
        )
        if wrong := [
            f"{name}: got {getattr(self, name)}, expected {wants}" for name, wants, right in checks if not right
        ]:
            raise ConfigError("\n".join(wrong))


@dataclass(frozen=True)
class Judge:
    """Says what a plan comes to on a log.

    Args:
        log: its traffic.
        costs: threads -> stage -> what it costs.
        shares: what lower rungs spare.
        config: of the search.
    """

    log: RequestLog
    costs: Mapping[int, Mapping[str, StageCost]]
    shares: Shares
    config: SearchConfig

    def run(self, plan: Plan, share: float = 1.0) -> LoadReport:
        """Simulate a plan on the log's first ``share``."""
        config, clock = self.config, Clock()
        traffic = Traffic(self.log)
        graph = shadow_graph(self.log.head, plan, self.shares, clock, traffic.kinds)
        arrivals = traffic.arrivals(config.load, config.deadline_ms)
        arrivals = arrivals[: max(2, round(share * len(arrivals)))]
        work = work_of(self.costs[plan.threads], config.seed)
        return simulate(graph, arrivals, work, config.cores, plan.threads, clock)

    def loss(self, plan: Plan, share: float = 1.0) -> tuple[float, float, int]:
        """Return what a plan costs, smaller is better: what it loses; then CPU; then memory for answers."""
        found = self.run(plan, share)
        return *loss_of(found, self.log), plan.cache_bytes.get("query", 0)

    def figures(self, found: LoadReport) -> dict[str, Any]:
        """Return a report as plain values, with the share that the whole service answered."""
        return {**found.figures(), "whole": round(whole_share(found, self.log), 5)}


def whole_share(found: LoadReport, log: RequestLog) -> float:
    """Return the share of requests that the whole service, or the cache, answered in time."""
    whole = (log.head.ladder.rungs[0].name, "cache")
    return sum(rung in whole for rung in found.rungs) / max(1, len(found.rungs))


def loss_of(found: LoadReport, log: RequestLog) -> tuple[float, float]:
    """Return what a run lost, beyond what is spared, and then its CPU seconds: smaller is better."""
    return round(max(0.0, 1 - SPARED - whole_share(found, log)), 4), round(found.cpu_seconds, 3)


@dataclass(frozen=True)
class Found:
    """What a search has come to.

    Args:
        plans: the best ones, best first, for a replay to choose from.
        figures: of the fit and of the plans, on both parts of the log.
    """

    plans: tuple[Plan, ...]
    figures: dict[str, Any]


def search(logs: Sequence[RequestLog], config: SearchConfig, show: Callable[[str], None], keep: int = 3) -> Found:
    """Find a plan for a log's traffic by successive halving.

    Args:
        logs: the first one's traffic; all tell what stages cost, each with its number of threads.
        config: what for, and how long.
        show: told what is done.
        keep: how many of the best are returned.

    Raises:
        DataError: too little in a log to fit.

    Source: JIZHI (arXiv 2106.01674), offline search of resource plans on historical logs; successive halving: Jamieson
        and Talwalkar (arXiv 1502.07943). Differs: plans run in virtual time on the policy code that serves.
    """
    costs = {log.head.threads: fit_costs(log.part(0, config.window)) for log in logs}
    first, rest = logs[0].part(0, config.window), logs[0].part(config.window, 1)
    shares = rung_shares(first, Traffic(first).whole)
    judge, later = (Judge(log, costs, shares, config) for log in (first, rest))
    served = served_plan(first, config)
    drawn = [served, *(_drawn(served, judge, number) for number in range(1, config.trials))]
    best = [_trimmed(plan, judge) for plan in _halved(drawn, judge, keep, show)]
    lucky = min(drawn[1 : keep + 1], key=judge.loss)
    rows = {"served": served, "found": best[0], f"best of {keep} drawn": lucky}
    figures = {
        "costs": {str(threads): {n: cost.figures() for n, cost in own.items()} for threads, own in costs.items()},
        "found on": {name: judge.figures(judge.run(plan)) for name, plan in rows.items()},
        "judged on": {name: later.figures(later.run(plan)) for name, plan in rows.items()},
    }
    return Found(tuple(best), figures)


def served_plan(log: RequestLog, config: SearchConfig) -> Plan:
    """Return the plan that a log was served by, of the stages that its requests went through."""
    seen = {name for logged in log.requests for name in logged.stages}
    stages = {stage.name: stage.plan for stage in log.head.stages if stage.name in seen}
    deadline = config.deadline_ms or float(np.median([logged.deadline_ms for logged in log.requests]))
    return Plan(deadline_ms=deadline, threads=log.head.threads, stages=stages, cache_bytes=_split(log, config, 1.0))


def _split(log: RequestLog, config: SearchConfig, share: float) -> dict[str, int]:
    """Return the caches' room: a share of it for whole answers, the rest for segments."""
    if config.cache_bytes is None:
        return {"query": log.head.query_bytes} if log.head.query_bytes else {}
    query = round(share * config.cache_bytes)
    return {"query": query, "memory": config.cache_bytes - query}


def _drawn(served: Plan, judge: Judge, number: int) -> Plan:
    """Return a plan drawn at random; the same number gives the same one."""
    rng = np.random.default_rng([judge.config.seed, number])
    most = max(1, round(2 * judge.config.cores))
    waits = [wait for wait in WAITS_MS if wait <= served.deadline_ms / 4]

    def stage(plan: StagePlan) -> StagePlan:
        return replace(
            plan,
            workers=int(rng.integers(1, most + 1)),
            max_batch=int(rng.choice(BATCHES)),
            max_wait_ms=float(rng.choice(waits)),
            queue_cap=int(rng.choice(QUEUES)),
        )

    return replace(
        served,
        threads=int(rng.choice(sorted(judge.costs))),
        stages={name: stage(plan) for name, plan in served.stages.items()},
        cache_bytes=_split(judge.log, judge.config, float(rng.choice(ROOMS))),
    )


def _trimmed(plan: Plan, judge: Judge) -> Plan:
    """Return a plan with the smallest query cache that is as good as any: what it leaves, segments get."""
    if judge.config.cache_bytes is None:
        return plan
    rooms = [replace(plan, cache_bytes=_split(judge.log, judge.config, share)) for share in ROOMS]
    return min(rooms, key=judge.loss)


def _halved(plans: Sequence[Plan], judge: Judge, keep: int, show: Callable[[str], None]) -> list[Plan]:
    """Return the best plans: half of them stay each time, and are tried on twice as much of the log.

    The first plan stays to the end, so that what is found is no worse.
    """
    alive, share = list(plans), min(1.0, 4 / len(plans))
    while True:
        losses = [judge.loss(plan, share) for plan in alive]
        order = sorted(range(len(alive)), key=losses.__getitem__)
        show(f"{len(alive)} plans on {share:.0%} of the window: the best loses {losses[order[0]][0]:.1%}")
        if share == 1 or len(alive) <= keep:
            return [alive[place] for place in order[:keep]]
        better = [alive[place] for place in order[: len(alive) // 2]]
        first = [] if any(plan is plans[0] for plan in better) else [plans[0]]
        alive, share = [*first, *better], min(1.0, 2 * share)
