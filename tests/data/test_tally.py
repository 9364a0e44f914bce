import numpy as np
import pytest

from m6rec.data.tally import Tally

NUM_ITEMS = 6


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    items, users, times = (rng.integers(0, high, 200) for high in (NUM_ITEMS - 1, 9, 20))
    return items, users, rng.integers(0, 2, 200).astype(float), times


def test_counts_before_a_moment_by_hand(log):
    items, _, answers, times = log
    tally = Tally(*log, NUM_ITEMS)
    for item in range(NUM_ITEMS):
        for time in (-np.inf, 0.0, 7.0, 7.5, 19.0, 99.0):
            chosen = (items == item) & (times < time)
            got = [float(column[0]) for column in tally.before(np.array([item]), np.array([time]))]
            assert got == [answers[chosen].sum(), chosen.sum(), (times < time).sum()]


def test_counts_without_a_user_by_hand(log):
    items, users, answers, _ = log
    tally = Tally(*log, NUM_ITEMS)
    for item in range(NUM_ITEMS):
        for user in range(10):
            own = (items == item) & (users == user)
            chosen = (items == item) & ~own
            got = [float(column[0]) for column in tally.without(np.array([item]), np.array([user]))]
            assert got == [answers[chosen].sum(), chosen.sum(), len(items) - own.sum()]


def test_nothing_counted():
    nothing = np.zeros(0, dtype=np.int64)
    tally = Tally(nothing, nothing, np.zeros(0), nothing, NUM_ITEMS)
    assert tally.mean == 0.5
    for columns in (
        tally.all(np.array([3])),
        tally.before(np.array([3]), np.array([5.0])),
        tally.without(np.array([3]), np.array([0])),
    ):
        assert [float(column[0]) for column in columns] == [0.0, 0.0, 0.0]
