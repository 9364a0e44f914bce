"""From a log to a plan: costs as they were, caches as they would be, and a plan that holds on what it has not seen."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from m6rec import cli
from m6rec.errors import ConfigError, DataError
from m6rec.serving.planning.costs import fit_cost, fit_costs, rung_shares, work_of
from m6rec.serving.planning.plan import Plan, read_plan
from m6rec.serving.planning.request_log import RequestLog, Visit
from m6rec.serving.planning.search import Judge, SearchConfig, search
from m6rec.serving.planning.shadow import Traffic, shadow_graph
from m6rec.serving.planning.simulator import Clock, simulate
from m6rec.serving.stage import StagePlan
from tests.serving.logs import COSTS, make_log, write_log


@pytest.fixture(scope="module")
def log():
    return make_log()


class TestCosts:
    def test_a_fit_finds_what_the_log_was_made_with(self, log):
        for name, cost in fit_costs(log).items():
            base, each = COSTS[name]
            assert (cost.base, cost.each) == (pytest.approx(base, rel=0.15), pytest.approx(each, rel=0.15))
            assert cost.ratios.mean() == pytest.approx(1, abs=0.02)
            assert cost.ratios.min() > 0.7

    def test_what_a_core_worked_counts_where_it_is_known(self, log):
        halved = tuple(
            replace(each, stages={name: replace(visit, cpu_ms=visit.ms / 2) for name, visit in each.stages.items()})
            for each in log.requests
        )
        assert fit_costs(replace(log, requests=halved))["rank"].base == pytest.approx(fit_costs(log)["rank"].base / 2)

    def test_nothing_costs_less_than_nothing(self):
        ones = np.ones(3)
        falling = fit_cost(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]), ones)
        assert (falling.base, falling.each) == (pytest.approx(2.0), 0.0)
        steep = fit_cost(np.array([1.0, 2.0, 3.0]), np.array([0.1, 2.0, 5.0]), ones)
        assert steep.base == pytest.approx(0)
        assert steep.each > 0

    def test_batches_of_one_size_promise_nothing_of_larger_ones(self):
        cost = fit_cost(np.full(5, 4.0), np.full(5, 0.2), np.ones(5))
        assert (cost.base, cost.each) == (pytest.approx(0), pytest.approx(0.05))

    def test_the_same_request_meets_the_same_chance_under_every_plan(self, log):
        traffic, work = Traffic(log), work_of(fit_costs(log), seed=1)
        alone, paired = (
            simulate(shadow_graph(log.head, Plan(stages=stages), {}, Clock()), traffic.arrivals(0.01), work)
            for stages in ({}, {"rank": StagePlan(workers=3)})
        )
        assert np.allclose(alone.latency, paired.latency)

    def test_too_short_a_log_says_so(self, log):
        with pytest.raises(DataError, match=r"'encode'.*log for longer"):
            fit_costs(replace(log, requests=log.requests[:9]))


class TestShadow:
    def test_it_is_as_slow_as_what_was_logged(self, log):
        """At the log's own load, one request at a time: the mean latency is the log's, and so is the work."""
        alone = replace(log, requests=tuple(logged for logged in log.requests if logged.stages["rank"].batch == 1))
        judge = Judge(alone, {1: fit_costs(log)}, {}, SearchConfig(load=0.05))
        found = judge.run(Plan())
        assert found.share("answered") == 1
        assert 1000 * found.latency.mean() == pytest.approx(np.mean([each.ms for each in alone.requests]), rel=0.05)

    def test_what_was_asked_a_moment_ago_is_answered_from_the_cache(self):
        log = make_log(keys=40, query_bytes=10 * 1000, query_ttl_s=5.0)
        found = Judge(log, {1: fit_costs(log)}, {}, SearchConfig(load=0.5)).run(Plan())
        assert found.rungs.count("cache") / len(found.rungs) == pytest.approx(_hits(log, 5.0 * 0.5, 10), abs=0.02)
        off = Judge(log, {1: fit_costs(log)}, {}, SearchConfig(load=0.5)).run(Plan(cache_bytes={"query": 0}))
        assert "cache" not in off.rungs
        assert off.cpu_seconds > 1.5 * found.cpu_seconds

    def test_inline_stages_fold_and_the_way_stays(self, log):
        graph = shadow_graph(log.head, Plan(), {}, Clock())
        assert [(stage.name, stage.parents) for stage in graph.order] == [
            ("door", ()),
            ("encode", ("door",)),
            ("rank", ("encode",)),
            ("respond", ("door", "encode", "rank")),
        ]

    def test_whoever_was_not_served_whole_takes_anothers_way(self, log):
        served = log.requests[0]
        others = [
            replace(served, key="new", outcome="refused", rung="", stages={}),
            replace(served, rung="cache", stages={}),
            replace(served, key="bad", outcome="bad", rung="", stages={}),
        ]
        arrivals = Traffic(replace(log, requests=(*log.requests, *others))).arrivals(1.0)
        assert len(arrivals) == len(log.requests) + 2
        assert set(arrivals[-2].request["way"]) == {"encode", "rank"}
        assert arrivals[-1].request == arrivals[0].request
        with pytest.raises(DataError, match="whole service"):
            Traffic(RequestLog(log.head, tuple(others))).arrivals(1.0)

    def test_anothers_way_is_one_of_the_same_kind(self, log):
        served = log.requests[0]
        ranked = replace(served, key="a", kind="rank", stages={"rank": served.stages["rank"]})
        refused = [replace(served, key=f"r{n}", kind="rank", outcome="refused", rung="", stages={}) for n in range(20)]
        traffic = Traffic(replace(log, requests=(*log.requests, ranked, *refused)))
        assert traffic.kinds == {"recommend", "rank"}
        arrivals = traffic.arrivals(1.0)[-20:]
        assert {arrival.kind for arrival in arrivals} == {"rank"}
        assert {tuple(arrival.request["way"]) for arrival in arrivals} == {("rank",)}

    def test_a_rung_spares_what_it_was_seen_to_spare(self, log):
        half = [
            replace(
                each,
                rung="fewer",
                stages={"encode": each.stages["encode"], "rank": Visit(ms=3, size=10, batch_size=10)},
            )
            for each in log.requests[:200]
        ]
        mixed = replace(log, requests=(*half, *log.requests[200:]))
        shares = rung_shares(mixed, "full")
        assert shares["fewer"]["encode"] == pytest.approx(1, abs=0.1)
        assert 0.2 < shares["fewer"]["rank"] < 0.6
        config = SearchConfig(load=6, deadline_ms=80)
        spared = Judge(log, {1: fit_costs(log)}, shares, config).run(Plan())
        spareless = Judge(log, {1: fit_costs(log)}, {}, config).run(Plan())
        assert spared.rungs.count("fewer") > 0
        assert spared.share("answered") >= spareless.share("answered")


def _hits(log, ttl_s, room):
    """Count, with a list and a clock, what a cache of ``room`` answers would have answered."""
    kept, hits = [], 0
    for each in log.requests:
        made = next((made for key, made in kept if key == each.key), None)
        if made is not None and each.at - made <= ttl_s:
            hits += 1
            kept = [pair for pair in kept if pair[0] != each.key] + [(each.key, made)]
            continue
        kept = [pair for pair in kept if pair[0] != each.key] + [(each.key, each.at)]
        kept = kept[-room:]
    return hits / len(log.requests)


class TestSearch:
    def test_a_plan_that_batches_keeps_up_where_one_by_one_does_not(self, log):
        told = []
        config = SearchConfig(load=4, trials=16, seed=3)
        found = search([log], config, told.append)
        judged = found.figures["judged on"]
        assert judged["served"]["rungs"]["full"] < 0.8
        assert judged["found"]["rungs"]["full"] > 1.1 * judged["served"]["rungs"]["full"]
        assert found.plans[0].stages["encode"].max_batch > 1
        assert len(told) == 3
        assert search([log], config, told.append).plans == found.plans

    def test_it_never_comes_out_worse_than_what_was_served(self, log):
        found = search([log], SearchConfig(load=0.2, trials=4), lambda line: None)
        rows = found.figures["found on"]
        assert rows["found"]["goodput"] >= rows["served"]["goodput"]
        assert rows["found"]["cpu_ms_a_request"] <= rows["served"]["cpu_ms_a_request"]

    def test_threads_are_only_those_that_were_seen(self, log):
        two = make_log(threads=2, seed=1)
        fast = tuple(
            replace(each, stages={name: replace(visit, ms=visit.ms / 10) for name, visit in each.stages.items()})
            for each in two.requests
        )
        found = search([log, replace(two, requests=fast)], SearchConfig(load=4, trials=8, cores=2), lambda line: None)
        assert found.plans[0].threads == 2
        assert set(found.figures["costs"]) == {"1", "2"}

    def test_memory_that_answers_do_not_need_goes_to_segments(self):
        log = make_log(keys=30, query_bytes=10**6, query_ttl_s=1e6)
        config = SearchConfig(load=2, trials=16, cache_bytes=10**7)
        sizes = search([log], config, lambda line: None).plans[0].cache_bytes
        assert sum(sizes.values()) == 10**7
        assert 0 < sizes["query"] < sizes["memory"]

    def test_impossible_settings_are_told_at_once(self):
        with pytest.raises(ConfigError, match=r"(?s)cores: got 0.*trials: got 5, expected a power of two"):
            SearchConfig(cores=0, trials=5)


def test_the_command_writes_a_plan_that_serve_reads(log, tmp_path, monkeypatch, capfd):
    write_log(log, tmp_path / "log.jsonl")
    words = [
        "plan",
        tmp_path / "log.jsonl",
        "--out",
        tmp_path / "plan.yaml",
        "--load",
        "3",
        "--trials",
        "4",
        "--cores",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["m6rec", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    said = capfd.readouterr().out
    assert "served" in said
    assert "found" in said
    plan = read_plan(tmp_path / "plan.yaml")
    assert set(plan.stages) == {"encode", "rank"}
    assert plan.found["search"]["load"] == 3
    assert plan.found["judged on"]["found"]["requests"] == 240
