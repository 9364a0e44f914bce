"""The planner's simulator against a clock, and what it says of fixed batches.

What is real here is the executor; its stages sleep as long as the simulated ones are said to take, so that no core is
fought for and a shared machine does little harm.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
from benches.harness import Bench, console
from rich.table import Table

from m6rec.serving import scheduler
from m6rec.serving.batcher import Fire
from m6rec.serving.executors.local import LocalExecutor
from m6rec.serving.graph import Graph
from m6rec.serving.lane import Batch
from m6rec.serving.planning.load import Arrival, LoadReport, poisson
from m6rec.serving.planning.replay import replay
from m6rec.serving.planning.simulator import simulate
from m6rec.serving.queues import StageQueue
from m6rec.serving.stage import Payload, Stage, StagePlan, Update

Cost = tuple[float, float]
"""Seconds a batch, and seconds a request in it."""
COSTS: dict[str, Cost] = {"encode": (0.020, 0.004), "rank": (0.030, 0.012)}
RATES, DEADLINE_S = (20, 40, 60, 90), 0.3
REGIMES: dict[str, Cost] = {"weight-bound": (0.008, 0.002), "compute-bound": (0.001, 0.009)}
OFFERED, SLO_S, FIXED = (150, 400), 0.1, 16


def run(bench: Bench) -> None:
    against_clocks(bench, (60,) if bench.quick else RATES, 100 if bench.quick else 500)
    against_fixed_batches(bench, 400 if bench.quick else 6000)
    bench.protocol = {
        "clocks": f"Poisson requests a second, {DEADLINE_S} s each; stages in a row of {COSTS} s, batches of 8 at most",
        "fixed batches": f"one core, {SLO_S} s each; queues of 9 (alone) and 64; a fixed batch is {FIXED} at most",
    }


# ---- the same requests for real and simulated


def against_clocks(bench: Bench, rates: Sequence[int], count: int) -> None:
    shown = Table("requests a second", "", "in time /s", "p50 ms", "p99 ms", "refused", box=None)
    gaps: dict[str, list[float]] = {"goodput": [], "p50_ms": [], "p99_ms": []}
    for rate in rates:
        arrivals = arriving(rate, count, DEADLINE_S)
        real = asyncio.run(served(arrivals)).figures()
        simulated = simulate(
            graph(passing), arrivals, lambda batch: seconds(COSTS[batch.stage.name], batch), 8
        ).figures()
        for name, figures in (("real", real), ("simulated", simulated)):
            row = [figures[each] for each in ("goodput", "p50_ms", "p99_ms", "refused")]
            shown.add_row(str(rate), name, *(f"{value:.4g}" for value in row))
            bench.figures |= {f"{each}_{name}_{rate}": figures[each] for each in gaps}
        for each, found in gaps.items():
            found.append(abs(simulated[each] / real[each] - 1))
    bench.figures |= {f"{each}_gap": max(found) for each, found in gaps.items()}
    console.print(shown)


def graph(make: Callable[[str], Callable[[Sequence[Payload]], list[Update]]]) -> Graph:
    plan = StagePlan(max_batch=8)
    stages = (
        Stage("encode", make("encode"), plan=plan),
        Stage("rank", make("rank"), ("encode",), plan=plan),
        Stage("respond", respond, ("rank",), kind="inline"),
    )
    return Graph(stages)


def passing(name: str) -> Callable[[Sequence[Payload]], list[Update]]:
    return lambda payloads: [{} for _ in payloads]


def sleeping(name: str) -> Callable[[Sequence[Payload]], list[Update]]:
    def run(payloads: Sequence[Payload]) -> list[Update]:
        base, each = COSTS[name]
        time.sleep(base + each * len(payloads))
        return [{} for _ in payloads]

    return run


def respond(payloads: Sequence[Payload]) -> list[Update]:
    return [{"answer": {}} for _ in payloads]


async def served(arrivals: Sequence[Arrival]) -> LoadReport:
    executor = LocalExecutor(graph(sleeping))
    await executor.start()
    try:
        return await replay(executor, arrivals)
    finally:
        await executor.drain()


# ---- fixed batches, as the spec's own simulation has them


def against_fixed_batches(bench: Bench, count: int) -> None:
    shown = Table("regime", "offered /s", "alone", f"{FIXED} fixed", "by deadline", box=None, title="in time a second")
    for regime, cost in REGIMES.items():
        for offered in OFFERED:
            arrivals = arriving(offered, count, SLO_S)
            found = {"alone": goodput(cost, arrivals, StagePlan(max_batch=1, queue_cap=9))}
            plan = StagePlan(max_batch=FIXED)
            # Neither the batcher nor admission knows what things cost.
            with (
                mock.patch.object(scheduler, "decide", fixed),
                mock.patch.object(scheduler.Scheduler, "_time_for", return_value=0.0),
            ):
                found["fixed"] = goodput(cost, arrivals, plan)
            found["aware"] = goodput(cost, arrivals, plan)
            shown.add_row(regime, str(offered), *(f"{value:.1f}" for value in found.values()))
            bench.figures |= {f"{regime}_{name}_{offered}": value for name, value in found.items()}
    console.print(shown)


def goodput(cost: Cost, arrivals: Sequence[Arrival], plan: StagePlan) -> float:
    stages = (Stage("work", passing("work"), plan=plan), Stage("respond", respond, ("work",), kind="inline"))
    return simulate(Graph(stages), arrivals, lambda batch: seconds(cost, batch)).goodput


def fixed(queue: StageQueue, *_: object) -> Fire:
    return Fire(list(queue)[: queue.stage.plan.max_batch])


def staged(batch: Batch) -> float:
    return seconds(COSTS[batch.stage.name], batch)


def seconds(cost: Cost, batch: Batch) -> float:
    return cost[0] + cost[1] * batch.size


def arriving(rate: float, count: int, within: float) -> list[Arrival]:
    times = poisson(rate, count, np.random.default_rng(0))
    return [Arrival(float(at), {"n": number}, within) for number, at in enumerate(times)]
