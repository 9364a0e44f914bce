"""The same runs served in nine ways, under load that does not wait: what each idea gives.

Requests come at their own times, whoever is ready (an open loop), from a process of their own; latency counts from when
a request was due. Every event of MovieLens latest-small's last fifth is a request, in the order of time, with what the
user had rated before that second. An answer is good when it is in time and was made by the models.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benches.contenders import CONTENDERS, hits
from benches.endurance import WARM_UP, endure
from benches.harness import Bench, console
from numpy.typing import NDArray
from rich.table import Table

from m6rec.data.prepare import PrepareConfig
from m6rec.data.sources.movielens import LatestSmall
from m6rec.data.store import Dataset
from m6rec.runs import CARD_FILE
from m6rec.serving.planning.load import poisson
from m6rec.serving.planning.plan import Plan, write_plan
from m6rec.serving.planning.request_log import read_log
from m6rec.serving.planning.search import SearchConfig, search

LOADS = (0.5, 1.0, 2.0, 3.0, 6.0, 12.0)
EVENTS, WARM, LAST = 24, 100, 0.2
BURST, BURST_S = 3.0, 2.0
PLANNED_LOAD = 2.0
# The time that a request has, in times that it takes the synchronous server alone.
SLO = 5.0
# How long a server is watched for growing memory, its warm-up apart.
STEADY_S = 600.0
TRAINED = {
    "retrieval": ("training.num_epochs=6",),
    # M6-Rec keeps 3 layers of 24 online; of MiniLM's 6 that is one.
    "ranking-late": (
        "late_interaction.layers=5",
        "training.max_steps=60",
        "training.evaluate_every=null",
        "training.evaluate_first=false",
        "training.select_on=null",
        "training.select_lowest=false",
    ),
}


def run(bench: Bench) -> None:
    source = LatestSmall(LatestSmall.Config(path=str(bench.folder("ml-latest-small"))))
    dataset = bench.prepare(source, "serving-log", PrepareConfig(split="temporal"))
    runs = [str(trained(bench, recipe, dataset, words)) for recipe, words in TRAINED.items()]
    log = bench.work / f"requests{'-quick' if bench.quick else ''}.json"
    log.write_text(json.dumps(requests_of(dataset, 8 if bench.quick else None)), encoding="utf-8")
    course = Course(runs, log, 1.0 if bench.quick else 12.0)
    alone = bench.once("serving-alone", lambda: asyncio.run(course.alone(2 if bench.quick else 40)))
    loads, points, plan = (3.0,) if bench.quick else LOADS, {}, bench.work / "serving-plan.yaml"
    for name in ("s0q", "s0c", "s5") if bench.quick else CONTENDERS:
        if name == "s6" and not plan.is_file():
            write_plan(found_plan(course, alone, bench.work / "serving-log.jsonl"), plan)
        given = {"plan": str(plan)} if name == "s6" else {}
        points[name] = bench.once(
            f"serving-{name}", lambda name=name, given=given: asyncio.run(course.contender(name, alone, loads, given))
        )
        show(name, points[name])
    bench.figures |= {"sync_ms": alone["ms"], "slo_ms": alone["slo_ms"], **figures_of(points)}
    ours = "s6" if "s6" in points else "s5"
    capacity, seconds = bench.figures[f"{ours}_goodput"], 5.0 if bench.quick else STEADY_S
    given = {"plan": str(plan)} if ours == "s6" else {}
    steady = bench.once("serving-steady", lambda: asyncio.run(course.steady(ours, alone, capacity, seconds, given)))
    span = f"{seconds:g}_seconds" if bench.quick else "10_minutes"
    names = ("memory_growth_mb", "tiers_growth_mb", "in_time")
    bench.figures |= {f"{name}_over_{span}": steady[name] for name in names}
    bench.details |= {"points": points, "alone": alone, "steady": steady, "cores": sorted(os.sched_getaffinity(0))}
    bench.protocol = {
        "load": f"open loop; {loads} times what S0 does alone, {course.seconds:g} s each, from the scheduled arrival",
        "slo": f"{SLO} x the mean of S0 alone",
        "good": "in time, and ranked by the model (whole, from the query cache, or with fewer candidates)",
        "requests": f"the last {LAST:.0%} of the log in time order, {EVENTS} events before that second; top 10",
    }


def trained(bench: Bench, recipe: str, dataset: Dataset, words: Sequence[str]) -> Path:
    """Return a run's folder; one that lies in ``--work`` is taken up."""
    out = bench.work / f"serving-{recipe}-0"
    if not (out / CARD_FILE).is_file():
        bench.train(recipe, dataset, f"serving-{recipe}", 0, words)
    return out


def found_plan(course: "Course", alone: Mapping[str, float], log: Path) -> Plan:
    """Return the plan for S5's log, of other requests than those that it is judged on."""
    log.unlink(missing_ok=True)
    # Longer than a point: every stage's cost is fitted to it.
    asyncio.run(replace(course, seconds=4 * course.seconds).logged("s5", alone, PLANNED_LOAD, log))
    config = SearchConfig(deadline_ms=alone["slo_ms"], trials=16)
    return search([read_log(log)], config, console.print).plans[0]


def requests_of(dataset: Dataset, most: int | None) -> dict[str, Any]:
    """Return the last part of a log as requests in the order of time, each with what was then done."""
    history, keys = dataset.histories(), list(dataset.items["key"][:])
    order = np.argsort(history.times, kind="stable")
    first = int((1 - LAST) * len(order))
    users = np.searchsorted(history.offsets, np.arange(history.num_events), side="right") - 1

    def request(event: int) -> dict[str, Any]:
        start = int(history.offsets[users[event]])
        before = start + int(np.searchsorted(history.times[start:event], history.times[event], side="left"))
        seen = range(max(start, before - EVENTS), before)
        events = [
            {"item": keys[history.items[row]], "time": int(history.times[row]), "value": float(history.values[row])}
            for row in seen
        ]
        return {"history": events, "target": keys[history.items[event]], "time": int(history.times[event])}

    chosen = [request(int(event)) for event in order[first : None if most is None else first + 50 * most]]
    return {"before": [request(int(event)) for event in order[first - WARM : first]][:most], "requests": chosen}


# ---- one server under load


@dataclass
class Course:
    """Servers of the same runs, and the requests that they get.

    Args:
        runs: folders.
        log: file of requests.
        seconds: how long requests come at each point.
    """

    runs: Sequence[str]
    log: Path
    seconds: float

    def __post_init__(self) -> None:
        self.requests = json.loads(self.log.read_text(encoding="utf-8"))["requests"]

    async def alone(self, count: int) -> dict[str, float]:
        """Return how long S0 takes for a request when there is no other."""
        async with Line(self, "s0") as line:
            await line.order({"reset": True})
            took = []
            for number in range(count + 2):
                due = asyncio.get_running_loop().time()
                await line.ask(number, number, 60_000)
                took.append(asyncio.get_running_loop().time() - due)
        mean = float(np.mean(took[2:]))
        return {"ms": 1000 * mean, "rate": 1 / mean, "slo_ms": 1000 * SLO * mean}

    async def logged(self, name: str, alone: Mapping[str, float], load: float, log: Path) -> None:
        """Write the request log of a contender at one load, from the second half of the requests."""
        async with Line(self, name) as line:
            start, rng = len(self.requests) // 2, np.random.default_rng(1)
            await self._point(line, "poisson", load * alone["rate"], start, alone, False, rng, {"log": str(log)})

    async def contender(
        self, name: str, alone: Mapping[str, float], loads: Sequence[float], given: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return what becomes of the requests at each load, then in bursts, and as the log itself has them."""
        rng, rate = np.random.default_rng(0), alone["rate"]
        plans: list[tuple[str, float, bool]] = [("poisson", load, False) for load in loads]
        if name in ("s0q", "s5", "s6"):
            plans += [("bursts", 1.0, False), ("replay", 1.0, False), ("poisson", loads[-1], True)]
        found, start = [], 0
        async with Line(self, name) as line:
            # What lets any number wait is late for all of them after the first overload.
            for kind, load, no_hits in [plan for plan in plans if name != "s0" or plan[1] <= 3]:
                point = await self._point(line, kind, load * rate, start, alone, no_hits, rng, given)
                found.append({"kind": kind, "load": load, "no_hits": no_hits, **point})
                start += point["offered_requests"]
            if name in ("s5", "s6"):
                best = max(point["goodput"] for point in found if not point["no_hits"])
                point = await self._point(line, "poisson", 3 * best, start, alone, False, rng, given)
                found.append({"kind": "overload", "load": 3 * best / rate, "no_hits": False, **point})
        return found

    async def steady(
        self, name: str, alone: Mapping[str, float], rate: float, seconds: float, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what a contender's memory does at one rate for so long, after its warm-up."""
        rows = self._rows(0, max(4, int(rate * seconds / (1 - WARM_UP))), False)
        async with Line(self, name) as line:
            await line.order({"reset": True, **given})
            return await endure(line, rows, rate, alone["slo_ms"])

    async def _point(
        self,
        line: "Line",
        kind: str,
        rate: float,
        start: int,
        alone: Mapping[str, float],
        no_hits: bool,
        rng: np.random.Generator,
        given: Mapping[str, Any],
    ) -> dict[str, Any]:
        rows = self._rows(start, max(4, int(rate * self.seconds)), no_hits)
        times = arrivals(kind, rate, [self.requests[row]["time"] for row in rows], rng)
        queue = max(1, int(0.9 * alone["slo_ms"] / alone["ms"]))
        await line.order({"reset": True, "queue": queue, "no_hits": no_hits, **given})
        for number in range(4):  # of the log before: every stage has been seen when the clock starts
            await line.ask(-1 - number, -1 - number, 60_000)
        before = await line.order({"used": True})
        answers = await line.open_loop(rows, times, alone["slo_ms"])
        after = await line.order({"used": True})
        figures = self._figures(rows, times, answers, alone["slo_ms"])
        cpu = 1000 * (after["cpu"] - before["cpu"]) / max(1, len(rows))
        return {
            **figures,
            "cpu_ms_a_request": cpu,
            "memory": after["memory"],
            "tiers": hits(before["report"], after["report"]),
        }

    def _rows(self, start: int, count: int, distinct: bool) -> list[int]:
        """Return the next requests of the log, round and round; ``distinct`` leaves out those that are the same."""
        rows = [(start + number) % len(self.requests) for number in range(count)]
        if not distinct:
            return rows
        seen: dict[str, int] = {}
        for row in range(len(self.requests)):
            seen.setdefault(json.dumps(self.requests[row]["history"]), row)
        others = list(seen.values())
        return [others[(start + number) % len(others)] for number in range(count)]

    def _figures(
        self, rows: Sequence[int], times: NDArray[np.float64], answers: Sequence[Any], slo_ms: float
    ) -> dict[str, Any]:
        span = float(times[-1] - times[0]) if len(times) > 1 else 1.0
        in_time = [a for a in answers if "items" in a and a["latency_ms"] <= slo_ms]
        good = [a for a in in_time if a["rung"] not in ("popular", "stale")]
        whole = [a for a in good if a["rung"] in ("full", "cache")]
        latency = [a["latency_ms"] for a in answers if "items" in a] or [float("inf")]
        return {
            "offered_requests": len(rows),
            "offered": len(rows) / span,
            "goodput": len(good) / span,
            "goodput_whole": len(whole) / span,
            "ndcg": float(np.mean([ndcg(a["items"], self.requests[rows[a["n"]]]["target"]) for a in good] or [0.0])),
            **{f"p{q}_ms": float(np.percentile(latency, q)) for q in (50, 95, 99)},
            "rungs": dict(Counter(a["rung"] for a in answers if "items" in a)),
            "errors": dict(Counter(a["error"] for a in answers if "error" in a)),
        }


class Line:
    """A contender's process, and the connection to it.

    Args:
        course: what it serves.
        name: of the contender.
    """

    def __init__(self, course: Course, name: str) -> None:
        self.course, self.name, self._waiting = course, name, dict[int, asyncio.Future[Any]]()
        self._orders: asyncio.Queue[Any] = asyncio.Queue()

    async def __aenter__(self) -> "Line":
        cores = sorted(os.sched_getaffinity(0))
        self._folder = tempfile.TemporaryDirectory()
        socket = f"{self._folder.name}/line"
        script = Path(__file__).with_name("contenders.py")
        command = [sys.executable, str(script), ",".join(self.course.runs), socket, self.name, str(self.course.log)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        # The generator and what it measures do not take each other's time, where there are two cores.
        os.sched_setaffinity(self._process.pid, {cores[0]})
        os.sched_setaffinity(0, {cores[-1]})
        self._cores = cores
        assert self._process.stdout is not None
        if not await asyncio.to_thread(self._process.stdout.readline):
            raise RuntimeError(f"the server of {self.name} did not start")
        reader, self._writer = await asyncio.open_unix_connection(socket, limit=1 << 24)
        self._listening = asyncio.create_task(self._listen(reader))
        return self

    async def __aexit__(self, *problem: object) -> None:
        self._listening.cancel()
        self._writer.close()
        self._process.kill()
        self._process.wait()
        os.sched_setaffinity(0, self._cores)
        self._folder.cleanup()

    async def order(self, order: dict[str, Any]) -> Any:
        """Return what comes back from an order that is no request."""
        self._writer.write(json.dumps(order).encode() + b"\n")
        return await self._orders.get()

    async def ask(self, number: int, row: int, ms: float) -> dict[str, Any]:
        """Return the answer to one request of the log."""
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"ask": row, "n": number, "ms": ms}).encode() + b"\n")
        found: dict[str, Any] = await self._waiting[number]
        return found

    async def open_loop(self, rows: Sequence[int], times: NDArray[np.float64], ms: float) -> list[dict[str, Any]]:
        """Return the answers to requests that come at their own times; what nobody answers in time is given up."""
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def due(number: int) -> dict[str, Any]:
            await asyncio.sleep(max(0.0, start + times[number] - loop.time()))
            try:
                answer = await asyncio.wait_for(self.ask(number, rows[number], ms), 4 * ms / 1000)
            except TimeoutError:
                answer = {"n": number, "error": "TimeoutError"}
            return {**answer, "latency_ms": 1000 * (loop.time() - start - times[number])}

        return list(await asyncio.gather(*(due(number) for number in range(len(rows)))))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            found = json.loads(line)
            if "n" not in found:
                self._orders.put_nowait(found)
            elif not (future := self._waiting.pop(found["n"])).done():
                future.set_result(found)


def arrivals(kind: str, rate: float, log: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return when requests come, in seconds.

    Args:
        kind: ``poisson``; ``bursts``: three times as many for two seconds of every eight; ``replay``: the log's own
            gaps, as much shorter as the rate wants.
        rate: mean, a second.
        log: when they came there.
        rng: of the chances.
    """
    count = len(log)
    if kind == "replay":
        gaps = np.diff(np.array(log, dtype=np.float64), prepend=log[0])
        # A log of a few hundred people has nights and empty weeks: a gap counts as ten mean ones at most.
        gaps = np.minimum(gaps, 10 * max(1.0, float(np.median(gaps[gaps > 0]) if (gaps > 0).any() else 1.0)))
        return np.cumsum(gaps) * (count / rate / max(1e-9, float(gaps.sum())))
    times = poisson(rate, count, rng)
    if kind == "poisson":
        return times
    # Time runs faster in a burst, and slower between two so that the mean stays.
    period, calm = 4 * BURST_S, (4 - BURST) / 3
    cycle, within = np.divmod(times, period)
    work = np.where(within < BURST * BURST_S, within / BURST, BURST_S + (within - BURST * BURST_S) / calm)
    return cycle * period + work


def ndcg(items: Sequence[str], target: str) -> float:
    return 1 / float(np.log2(2 + items.index(target))) if target in items else 0.0


# ---- figures


def figures_of(points: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Return the claimed figures, and each contender's best."""
    figures: dict[str, float] = {}
    for name, own in points.items():
        best = max((p for p in own if p["kind"] == "poisson" and not p["no_hits"]), key=lambda p: p["goodput"])
        names = ("goodput", "goodput_whole", "p99_ms", "ndcg", "cpu_ms_a_request")
        figures |= {f"{name}_{figure}": best[figure] for figure in names}
    ours = "s6" if "s6" in points else "s5"
    figures["goodput_over_sync"] = figures[f"{ours}_goodput"] / max(1e-9, figures["s0q_goodput"])
    figures["goodput_whole_over_sync"] = figures[f"{ours}_goodput_whole"] / max(1e-9, figures["s0q_goodput"])
    figures["ndcg_over_sync"] = figures[f"{ours}_ndcg"] / max(1e-9, figures["s0q_ndcg"])
    if "s0c" in points:
        figures["goodput_over_caching_sync"] = figures[f"{ours}_goodput"] / max(1e-9, figures["s0c_goodput"])
    cold = {name: next(p["goodput"] for p in points[name] if p["no_hits"]) for name in (ours, "s0q")}
    figures["goodput_over_sync_no_hits"] = cold[ours] / max(1e-9, figures["s0q_goodput"])
    overload = next(p for p in points[ours] if p["kind"] == "overload")
    figures["overload_goodput_share"] = overload["goodput"] / max(1e-9, figures[f"{ours}_goodput"])
    return figures


def show(name: str, points: Sequence[Mapping[str, Any]]) -> None:
    columns = ("load", "offered", "good", "whole", "p50", "p99", "CPU-ms", "NDCG")
    table = Table(*columns, box=None, title=CONTENDERS[name].says, title_justify="left")
    for p in points:
        load = f"{p['kind']} {p['load']:.1f}{' no hits' if p['no_hits'] else ''}"
        numbers = (p["offered"], p["goodput"], p["goodput_whole"], p["p50_ms"], p["p99_ms"], p["cpu_ms_a_request"])
        table.add_row(load, *(f"{number:.1f}" for number in numbers), f"{p['ndcg']:.3f}")
        table.add_row("", " ".join(f"{what} {count}" for what, count in {**p["rungs"], **p["errors"]}.items()))
    console.print(table)
