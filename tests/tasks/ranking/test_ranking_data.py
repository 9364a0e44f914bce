import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.data.features import NUM_FEATURES, STATISTICS, features
from m6rec.data.histories import Histories, Judgements
from m6rec.data.statistics import CROSS_NAMES
from m6rec.tasks.ranking.data import (
    every_event,
    with_sampled_negatives,
    without_history,
)
from m6rec.tasks.trees import slates


def log_of(lengths, num_items=30, seed=0):
    rng = np.random.default_rng(seed)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    count = int(offsets[-1])
    return Histories(offsets, rng.integers(-1, num_items, count).astype(np.int32), np.zeros(count, np.int8), num_items)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
    st.integers(0, 80),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(0, 9),
)
def test_each_pair_stands_once_and_sees_half_of_a_trunk(lengths, count, max_events, max_branches, seed):
    log, rng = log_of(lengths), np.random.default_rng(seed)
    users = rng.integers(len(lengths), size=count).astype(np.int32)
    seen = np.array([rng.integers(lengths[user] + 1) for user in users], dtype=np.int64)
    zeros = np.zeros(count, dtype=np.float32)
    pairs = Judgements(log, users, rng.integers(30, size=count).astype(np.int32), zeros, seen)
    found = slates(pairs, max_events, max_branches)
    assert sorted(np.concatenate([slate.pairs for slate in found]) if found else []) == list(range(count))
    for slate in found:
        begin = int(log.offsets[slate.user])
        assert begin <= slate.start <= slate.stop <= log.offsets[slate.user + 1]
        assert slate.stop - slate.start <= max_events
        assert len(slate.pairs) <= max_branches
        for pair in slate.pairs:
            assert pairs.users[pair] == slate.user
            visible = min(begin + seen[pair], slate.stop) - slate.start
            assert begin + seen[pair] <= slate.stop
            assert visible >= min(seen[pair], max(1, max_events // 2))


def test_every_event_sees_the_events_before_it():
    log = log_of([4, 0, 3])
    pairs = every_event(log)
    assert (pairs.labels == 1).all()
    chosen = np.flatnonzero(log.items >= 0)
    assert pairs.items.tolist() == log.items[chosen].tolist()
    assert (pairs.lengths + log.offsets[pairs.users]).tolist() == chosen.tolist()


class TestSampledNegatives:
    def test_they_are_never_met(self):
        log = log_of([9, 6, 12])
        pairs = with_sampled_negatives(every_event(log), 3, seed=0)
        positives = int((log.items >= 0).sum())
        assert (int(pairs.labels.sum()), len(pairs)) == (positives, 4 * positives)
        for user, item, label in zip(pairs.users, pairs.items, pairs.labels, strict=True):
            assert (item in log.items[log.of(int(user))]) == bool(label)
        repeated = pairs.lengths[positives:].reshape(-1, 3)
        assert (repeated == pairs.lengths[:positives, None]).all()

    def test_a_users_draws_depend_on_nobody_else(self):
        log = log_of([9, 6, 12])
        whole = every_event(log)
        alone = whole.take(np.flatnonzero(whole.users == 2))
        together, single = (with_sampled_negatives(part, 2, seed=5) for part in (whole, alone))
        mine = (together.users == 2) & (together.labels == 0)
        assert together.items[mine].tolist() == single.items[single.labels == 0].tolist()
        other = with_sampled_negatives(whole, 2, seed=6)
        assert (other.items != together.items).any()

    def test_who_has_met_everything_gets_something(self):
        log = Histories(np.array([0, 3]), np.arange(3, dtype=np.int32), np.zeros(3, np.int8), 3)
        assert len(with_sampled_negatives(every_event(log), 2, seed=0)) == 9

    def test_nothing_gives_nothing(self):
        assert len(with_sampled_negatives(every_event(log_of([0, 0])), 2, seed=0)) == 0


class TestFeatures:
    def test_numbers_of_order_one_that_say_what_is_unknown(self):
        values = {name: np.array([50.0, np.nan, 0.0, 100.0]) for name in STATISTICS}
        found = features(values)
        assert found.shape == (4, NUM_FEATURES)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        rate, known = 2 * STATISTICS.index("user_rate"), 2 * STATISTICS.index("user_rate") + 1
        assert found[:, rate].tolist() == [0, 0, -1, 1]
        assert found[:, known].tolist() == [1, 0, 1, 1]
        assert found[:, 2 * STATISTICS.index("item_count")].tolist() == pytest.approx([np.log(51), 0, 0, np.log(101)])


def test_some_pairs_forget_the_user_but_not_the_item():
    log = log_of([20, 20])
    pairs = every_event(log)
    known = {name: np.linspace(1, 2, len(pairs)) for name in STATISTICS}
    known["brand_count"][::2] = np.nan
    changed, statistics = without_history(pairs, known, 0.5, seed=0)
    forgotten = (changed.lengths == 0) & (pairs.lengths > 0)
    assert 0.2 < forgotten.mean() < 0.8
    kept = ~forgotten & (pairs.lengths > 0)
    assert (changed.lengths[kept] == pairs.lengths[kept]).all()
    for name, values in statistics.items():
        np.testing.assert_array_equal(values[kept], known[name][kept])
        if name not in CROSS_NAMES:
            np.testing.assert_array_equal(values, known[name])
        elif name.endswith("count"):
            assert np.nan_to_num(values[forgotten]).max() == 0
            assert (np.isnan(values) == np.isnan(known[name])).all()
        else:
            assert np.isnan(values[forgotten]).all()
    same, _ = without_history(pairs, known, 0.0, seed=0)
    assert (same.lengths == pairs.lengths).all()
