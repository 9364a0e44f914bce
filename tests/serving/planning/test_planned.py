"""A plan put to work: the graph's settings, and logged requests sent again to a real executor."""

import asyncio
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import m6rec
from m6rec import cli
from m6rec.errors import DataError
from m6rec.serving.executors.local import LocalConfig, LocalExecutor
from m6rec.serving.graph import Graph
from m6rec.serving.graphs import GraphConfig, TierConfig, recommender_graph
from m6rec.serving.planning.load import Arrival
from m6rec.serving.planning.plan import Plan, read_plan
from m6rec.serving.planning.planned import logged_arrivals, replayed, with_plan
from m6rec.serving.planning.replay import replay
from m6rec.serving.planning.request_log import LoggedExecutor, RequestLogger, read_log
from m6rec.serving.stage import Stage, StagePlan
from tests.serving.steps import line


def test_a_plan_changes_what_it_names_and_nothing_else():
    before = GraphConfig(tiers=TierConfig(query_bytes=5, hot_bytes=7), plans={"encode": StagePlan(workers=2)})
    plan = Plan(stages={"rank": StagePlan(workers=3)}, cache_bytes={"query": 11, "memory": 13})
    after = with_plan(before, plan)
    assert dict(after.plans) == {"encode": StagePlan(workers=2), "rank": StagePlan(workers=3)}
    assert (after.tiers.query_bytes, after.tiers.hot_bytes, after.tiers.segments.memory_bytes) == (11, 7, 13)
    assert with_plan(before, Plan()) == before


def slow(payloads):
    time.sleep(0.05)
    return [{"answer": {"items": []}} for _ in payloads]


def test_a_replay_counts_from_when_a_request_was_due():
    graph = Graph((Stage("work", slow, plan=StagePlan(max_batch=1)),))

    async def run():
        executor = LocalExecutor(graph, LocalConfig(60_000))
        await executor.start()
        report = await replay(executor, [Arrival(0.0, {"n": n}, 60.0) for n in range(4)])
        await executor.drain()
        return report

    report = asyncio.run(run())
    assert report.share("answered") == 1
    assert (np.diff(report.latency) > 0.03).all()  # each waits for those before it, and that counts


def test_what_is_refused_or_wrong_is_counted_as_that():
    async def run():
        executor = LocalExecutor(line())
        await executor.start()
        report = await replay(executor, [Arrival(0.0, {}, 1.0, "nonsense"), Arrival(0.0, {"n": 1}, 1.0)])
        await executor.drain()
        late = await replay(executor, [Arrival(0.0, {"n": 1}, 1.0)])
        return report, late

    report, late = asyncio.run(run())
    assert report.outcomes == ("bad", "answered")
    assert late.outcomes == ("refused",)


@pytest.fixture(scope="module")
def kept_log(retrieval_run, tmp_path_factory):
    """Return the log of a server that has answered 60 requests one by one, with the requests in it."""
    path = tmp_path_factory.mktemp("log") / "requests.jsonl"
    graph = recommender_graph(m6rec.load(retrieval_run), GraphConfig(tiers=TierConfig(query_bytes=0)))

    async def run():
        executor = LoggedExecutor(LocalExecutor(graph), RequestLogger(path, keep_requests=True))
        await executor.start()
        for number in range(60):
            await executor.submit({"history": [f"g{number % 36:02d}"], "k": 3}, deadline_ms=30_000)
        await executor.drain()

    asyncio.run(run())
    return path


def test_logged_requests_are_answered_again_under_a_plan(kept_log, retrieval_run):
    log = read_log(kept_log)
    arrivals = logged_arrivals(log.part(0.5, 1.0), load=50.0, deadline_ms=30_000)
    assert [arrival.request["k"] for arrival in arrivals] == [3] * 30
    recommender = m6rec.load(retrieval_run)
    plan = Plan(deadline_ms=30_000, stages={"encode": StagePlan(max_batch=16, max_wait_ms=2.0)})

    def build(chosen):
        return recommender_graph(recommender, with_plan(GraphConfig(), chosen))

    report = replayed(plan, build, arrivals, before=arrivals[:3])
    assert report.share("answered") == 1
    assert report.cpu_seconds > 0


def test_a_log_without_requests_cannot_be_sent_again(kept_log):
    log = read_log(kept_log)
    bare = replace(log, requests=tuple(replace(logged, request=None) for logged in log.requests))
    with pytest.raises(DataError, match="--keep-requests"):
        logged_arrivals(bare, 1.0, None)


def test_the_command_replays_on_a_run(kept_log, retrieval_run, tmp_path, monkeypatch, capfd):
    out = tmp_path / "plan.yaml"
    words = [
        kept_log,
        retrieval_run,
        "--out",
        out,
        *["--trials", "4", "--replays", "1", "--cores", "1", "--deadline-ms", "20000"],
    ]
    monkeypatch.setattr(sys, "argv", ["m6rec", "plan", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "replayed for real" in capfd.readouterr().out
    plan = read_plan(out)
    assert set(plan.found["replayed"]) == {"served", "plan 1"}
    assert {"encode", "retrieve", "filter"} <= set(plan.stages)
    assert "generate" not in plan.stages
