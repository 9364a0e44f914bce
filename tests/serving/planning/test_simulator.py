"""Virtual time against closed forms, and against what the spec's own simulation found."""

import numpy as np
import pytest

from m6rec.serving import scheduler
from m6rec.serving.batcher import Fire
from m6rec.serving.graph import Graph
from m6rec.serving.planning.load import Arrival, poisson
from m6rec.serving.planning.simulator import simulate
from m6rec.serving.shedding import Ladder, Rung
from m6rec.serving.stage import Stage
from tests.serving.steps import adding, line, parse, respond


def arriving(times, within=1e9):
    return [Arrival(float(time), {"n": number}, within) for number, time in enumerate(times)]


def linear(base, each):
    return lambda batch: base + each * batch.size


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_server_waits_as_queueing_theory_says(load):
    """M/D/1: mean wait = load / (2 (1 - load)) services (Pollaczek-Khinchine)."""
    service, count = 0.01, 6000
    times = poisson(load / service, count, np.random.default_rng(0))
    found = simulate(line(max_batch=1, queue_cap=10**6), arriving(times), linear(service, 0))
    wait = found.latency.mean() - service
    assert found.share("answered") == 1
    assert wait == pytest.approx(service * load / (2 * (1 - load)), rel=0.1)


def test_many_servers_on_one_core_are_no_faster_than_one():
    times = poisson(70, 1500, np.random.default_rng(0))
    alone, many, cores = (
        simulate(line(max_batch=1, queue_cap=10**6, workers=workers), arriving(times), linear(0.01, 0), cores=cores)
        for workers, cores in ((1, 1), (4, 1), (4, 4))
    )
    assert alone.cpu_seconds == many.cpu_seconds == pytest.approx(15)
    # Processor sharing (M/D/1-PS) waits twice as long as first come first served, on average.
    assert many.latency.mean() > 1.2 * alone.latency.mean()
    assert cores.latency.mean() < 1.05 * 0.01


def test_a_batch_of_two_threads_takes_both_cores():
    arrivals = arriving([0.0, 0.0])
    for threads, end in ((1, 0.1), (2, 0.2)):
        found = simulate(line(max_batch=1, workers=2), arrivals, linear(0.1, 0), cores=2, threads=threads)
        assert found.latency.tolist() == pytest.approx([end, end])


def test_a_saturated_server_answers_as_many_as_it_can():
    for load in (1.5, 4):
        times = poisson(load * 100, 3000, np.random.default_rng(1))
        found = simulate(line(max_batch=1), arriving(times, within=0.1), linear(0.01, 0))
        assert found.goodput == pytest.approx(100, rel=0.03)
        assert found.percentile_ms(99) <= 100 + 1e-6
        assert found.share("refused") == pytest.approx(1 - 1 / load, abs=0.03)


def test_without_a_bound_an_overloaded_server_answers_nobody_in_time():
    times = poisson(150, 1500, np.random.default_rng(1))
    found = simulate(line(max_batch=1, queue_cap=10**6), arriving(times), linear(0.01, 0))
    assert (found.latency <= 0.1).mean() < 0.05


def fixed(queue, cost, now, reserve=0.0):
    """Take a full batch, whatever the time that is left."""
    return Fire(list(queue)[: queue.stage.plan.max_batch])


def blind(monkeypatch):
    """Batches of a fixed size behind a bounded queue: neither the batcher nor admission knows what things cost."""
    monkeypatch.setattr(scheduler, "decide", fixed)
    monkeypatch.setattr(scheduler.Scheduler, "_time_for", lambda *_: 0.0)


@pytest.mark.parametrize(("base", "each", "pays"), [(0.001, 0.009, False), (0.008, 0.002, True)])
def test_a_fixed_batch_pays_only_where_a_batch_costs_little_more_than_one(monkeypatch, base, each, pays):
    """The spec's finding: with 1 + 9 n ms and 100 ms to answer in, batches of 16 are worse than none."""
    arrivals = arriving(poisson(150, 4000, np.random.default_rng(2)), within=0.1)
    aware = simulate(line(max_batch=16, queue_cap=64), arrivals, linear(base, each)).goodput
    alone = simulate(line(max_batch=1, queue_cap=9), arrivals, linear(base, each)).goodput
    blind(monkeypatch)
    batched = simulate(line(max_batch=16, queue_cap=64), arrivals, linear(base, each)).goodput
    if pays:
        assert batched > 1.3 * alone
        assert aware > 1.3 * alone
    else:
        assert batched < 0.7 * alone
        assert aware > 0.95 * alone


@pytest.mark.parametrize("load", [1.0, 3.0])
def test_overload_does_not_spiral_into_batches_of_one(load):
    """Sixteen take 40 ms together and 10 ms each alone: 400 a second, or a hundred."""
    arrivals = arriving(poisson(load * 400, 2500, np.random.default_rng(5)), within=0.1)
    found = simulate(line(max_batch=16, queue_cap=64), arrivals, linear(0.008, 0.002))
    assert found.goodput > 0.9 * 400
    assert found.share("expired") < 0.02


def test_the_same_requests_come_to_the_same_end():
    arrivals = arriving(poisson(200, 500, np.random.default_rng(3)), within=0.05)
    one, two = (simulate(line(max_batch=4), arrivals, linear(0.004, 0.003)) for _ in range(2))
    assert one.figures() == two.figures()
    assert np.array_equal(one.latency, two.latency, equal_nan=True)


def test_branches_joins_and_rungs_are_the_schedulers_own():
    ladder = Ladder((Rung("full"), Rung("fewer", candidates=5)))
    stages = (
        Stage("parse", parse, kind="inline", at_door=True),
        Stage("left", adding("a"), ("parse",)),
        Stage("right", adding("b"), ("parse",)),
        Stage("join", adding("c"), ("left", "right"), size=lambda payload: payload["rung"].candidates or 50),
        Stage("respond", respond, ("join",), kind="inline"),
    )
    costs = {"left": (0.01, 0), "right": (0.03, 0), "join": (0.0, 0.001)}
    found = simulate(
        Graph(stages, ladder=ladder), arriving([0.0], 1.0), lambda batch: linear(*costs[batch.stage.name])(batch), 2
    )
    assert found.latency[0] == pytest.approx(0.03 + 0.05)
    times = poisson(40, 1000, np.random.default_rng(4))
    pressed = simulate(
        Graph(stages, ladder=ladder), arriving(times, 0.3), lambda batch: linear(*costs[batch.stage.name])(batch), 2
    )
    assert set(pressed.figures()["rungs"]) == {"full", "fewer"}
    assert pressed.share("answered") > 0.8


def test_identical_requests_in_flight_are_computed_once():
    arrivals = [Arrival(0.001 * number, {"n": number, "key": "k"}, 1.0) for number in range(5)]
    found = simulate(line(max_batch=1), arrivals, linear(0.01, 0))
    assert found.cpu_seconds == pytest.approx(0.01)
    assert found.latency.tolist() == pytest.approx([0.01, 0.009, 0.008, 0.007, 0.006])


def test_nobody_came():
    figures = simulate(line(), [], linear(0.01, 0)).figures()
    assert (figures["requests"], figures["goodput"]) == (0, 0.0)
