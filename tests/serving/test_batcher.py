import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec.errors import ConfigError
from m6rec.serving.batcher import CostModel, Fire, Wait, decide
from m6rec.serving.queues import StageQueue
from m6rec.serving.stage import Event, Stage, StagePlan
from tests.serving.steps import adding


def queue_of(deadlines, *, entered=0.0, kinds=None, sizes=None, **plan):
    stage = Stage(
        "work",
        adding("a"),
        size=lambda payload: payload["size"],
        bucket=lambda payload: payload["kind"],
        plan=StagePlan(**{"max_batch": 100, **plan}),
    )
    queue = StageQueue(stage)
    for number, deadline in enumerate(deadlines):
        payload = {"kind": (kinds or "a" * 99)[number], "size": (sizes or [1.0] * 99)[number]}
        queue.put(Event(number, payload, 0.0, deadline, entered={"work": entered}))
    return queue


def fitted(base, each):
    cost = CostModel()
    for size in (1, 2, 4, 8, 3, 5):
        cost.saw(size, base + each * size)
    cost.spread = 0.0
    return cost


def fired(queue, cost, now=0.0, reserve=0.0):
    chosen = decide(queue, cost, now, reserve)
    assert isinstance(chosen, Fire)
    return [event.number for event in chosen.events]


@pytest.mark.parametrize(("base", "each"), [(0.02, 0.005), (0.0, 0.01), (0.05, 0.0)])
def test_the_cost_of_a_batch_is_found_from_batches(base, each):
    cost = CostModel()
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 16))
        cost.saw(size, (base + each * size) * float(rng.lognormal(0, 0.05)))
    for size in (1, 8, 16):
        assert cost.cost(size) == pytest.approx(base + each * size, rel=0.12)
    assert 0 < cost.spread < 0.02


def test_the_cost_follows_when_it_changes():
    cost = fitted(0.01, 0.01)
    for size in (1, 4, 2, 8) * 60:
        cost.saw(size, 0.05 + 0.002 * size)
    assert cost.cost(4) == pytest.approx(0.058, rel=0.05)


def test_a_gain_of_batching_that_nobody_has_seen_is_not_counted_on():
    cost = CostModel()
    for _ in range(10):
        cost.saw(1, 0.03)
    assert cost.cost(4) == pytest.approx(0.12)


@given(st.lists(st.tuples(st.floats(1, 50), st.floats(0, 5)), min_size=1, max_size=30))
def test_no_cost_is_ever_negative_or_falls_with_size(batches):
    cost = CostModel()
    for size, seconds in batches:
        cost.saw(size, seconds)
    assert cost.base >= 0
    assert cost.each >= 0
    assert cost.spread >= 0


def test_it_takes_the_most_that_the_smallest_slack_allows():
    cost = fitted(0.01, 0.01)
    assert fired(queue_of([1.0] * 20), cost) == list(range(20))
    assert fired(queue_of([0.055] * 20), cost) == [0, 1, 2, 3]
    assert fired(queue_of([1.0, 1.0, 1.0, 0.035, 1.0]), cost) == [0, 1, 2]
    assert fired(queue_of([0.035] + [1.0] * 9), cost) == [0, 1]


def test_one_is_taken_however_little_time_it_has():
    assert fired(queue_of([0.001, 1.0]), fitted(0.01, 0.01)) == [0]


def test_what_the_stages_behind_need_is_left_to_them():
    assert fired(queue_of([0.1] * 20), fitted(0.01, 0.01), reserve=0.055) == [0, 1, 2]


def test_what_is_not_sure_counts_as_time():
    cost = fitted(0.01, 0.01)
    cost.spread = 0.02
    assert fired(queue_of([0.055] * 20), cost) == [0, 1]


def test_work_counts_and_not_heads():
    cost = fitted(0.0, 0.01)
    assert fired(queue_of([0.1] * 5, sizes=[1, 2, 6, 2, 1]), cost) == [0, 1, 2]


def test_only_what_is_alike_is_batched():
    assert fired(queue_of([1.0] * 5, kinds="abaab"), fitted(0.01, 0.01)) == [0, 2, 3]


def test_an_idle_worker_waits_for_company_but_never_longer_than_the_slack():
    cost = fitted(0.01, 0.01)
    assert fired(queue_of([1.0] * 2), cost) == [0, 1]
    assert decide(queue_of([1.0] * 2, max_wait_ms=50), cost, 0.01) == Wait(0.05)
    assert fired(queue_of([1.0] * 2, max_wait_ms=50), cost, now=0.05) == [0, 1]
    tight = decide(queue_of([0.07] * 2, max_wait_ms=50), cost, 0.01)
    assert isinstance(tight, Wait)
    assert tight.until == pytest.approx(0.04)
    assert fired(queue_of([1.0] * 3, max_wait_ms=50, max_batch=3), cost) == [0, 1, 2]


def test_a_batch_that_cannot_grow_does_not_wait():
    assert fired(queue_of([0.055] * 20, max_wait_ms=500), fitted(0.01, 0.01)) == [0, 1, 2, 3]
    assert fired(queue_of([1.0] * 2, kinds="ab", max_wait_ms=500), fitted(0.01, 0.01)) == [0]


def test_one_that_has_to_be_alone_is_and_is_never_company():
    queue = queue_of([1.0] * 3)
    events = list(queue)
    events[1].alone = True
    assert fired(queue, fitted(0.01, 0.01)) == [0, 2]
    queue.take([events[0], events[2]])
    assert fired(queue, fitted(0.01, 0.01)) == [1]


def test_a_queue_is_bounded_and_drops_what_is_late_or_left():
    queue = queue_of([0.1, 0.5, 0.5, 0.9], queue_cap=4)
    assert queue.is_full
    assert not queue.put(Event(9, {"kind": "a", "size": 1.0}, 0.0, 1.0, entered={"work": 0.0}))
    list(queue)[1].live = False
    assert [event.number for event in queue.drop(0.2)] == [0, 1]
    assert [event.number for event in queue] == [2, 3]


def test_impossible_plans_are_told_at_once():
    with pytest.raises(ConfigError, match=r"workers.*\n.*queue_cap.*\n.*max_wait_ms"):
        StagePlan(workers=0, queue_cap=0, max_wait_ms=-1)
