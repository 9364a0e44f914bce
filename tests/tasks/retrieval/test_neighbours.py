from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from m6rec.data.histories import Histories
from m6rec.tasks.retrieval.neighbours import Kin, Links, NeighbourConfig, boost_for_share, sharpen

NUM_ITEMS = 7


def log_of(users):
    items = np.array([item for user in users for item in user], dtype=np.int32)
    offsets = np.r_[0, np.cumsum([len(user) for user in users])].astype(np.int64)
    return Histories(offsets, items, np.zeros(len(items), np.int8), NUM_ITEMS)


def by_hand(users, window):
    """Count followers one by one."""
    counts = Counter()
    for user in users:
        met = [item for item in user if item >= 0]
        for place, item in enumerate(met):
            for lag in range(1, window + 1):
                if place + lag < len(met):
                    counts[item, met[place + lag]] += 1 / lag
    table = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for (item, follower), count in counts.items():
        table[item, follower] = count
    scale = np.sqrt(np.outer(table.sum(1), table.sum(0)))
    return np.divide(table, scale, out=np.zeros_like(table), where=scale > 0)


logs = st.lists(st.lists(st.integers(-1, NUM_ITEMS - 1), max_size=9), max_size=6)


@settings(max_examples=100, deadline=None)
@given(logs, st.integers(1, 4))
def test_links_equal_a_count_by_hand(users, window):
    links, expected = Links.count(log_of(users), window), by_hand(users, window)
    config = NeighbourConfig(window=window, decay=0.5)
    found = links.follow([np.array([item]) for item in range(NUM_ITEMS)], NUM_ITEMS, config)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    again = Links.of(links.tensors())
    assert (
        again.follow([np.array([1, 2])], NUM_ITEMS, config) == links.follow([np.array([1, 2])], NUM_ITEMS, config)
    ).all()


def test_last_items_are_looked_up_with_decay():
    users = [[0, 1, 2, 3], [1, 3, 5], [6, 0, 5]]
    links, config = Links.count(log_of(users), 2), NeighbourConfig(window=2, decay=0.6)
    table = by_hand(users, 2)
    found = links.follow([np.array([6, 1, -1, 0, 99])], NUM_ITEMS + 2, config)
    np.testing.assert_allclose(found[0, :NUM_ITEMS], table[0] + 0.6 * table[1], rtol=1e-5)
    assert not found[0, NUM_ITEMS:].any()
    assert not links.follow([np.array([], dtype=np.int64)], NUM_ITEMS, config).any()


def test_sharpening_keeps_order_and_zero():
    assert sharpen(np.array([0.0, 0.01], dtype=np.float32)).tolist() == pytest.approx([0, np.log(2)])


class TestKin:
    TEXTS = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 1], [0, -1]]), dim=1)
    TRAINED = np.array([True, True, True, False, False])

    def test_the_nearest_trained_items_are_the_parents(self):
        kin = Kin.find(self.TEXTS, self.TRAINED, 2)
        assert kin.items.tolist() == [3, 4]
        assert kin.parents[0].tolist() == [2, 0]  # cosines 3 / sqrt(10) and 2 / sqrt(5)
        cosines = np.array([3 / np.sqrt(10), 2 / np.sqrt(5)])
        np.testing.assert_allclose(kin.shares[0], cosines / cosines.sum(), rtol=1e-5)
        np.testing.assert_allclose(kin.shares.sum(1), 1, rtol=1e-5)
        assert np.isfinite(kin.shares).all()

    def test_new_items_inherit_the_weighted_mean(self):
        kin = Kin.find(self.TEXTS, self.TRAINED, 2)
        scores = np.array([[1.0, 2.0, 4.0, 50.0, 60.0]], dtype=np.float32)
        found = kin.inherit(scores.copy())
        assert found[0, :3].tolist() == [1, 2, 4]
        np.testing.assert_allclose(found[0, 3], scores[0, kin.parents[0]] @ kin.shares[0], rtol=1e-6)

    @pytest.mark.parametrize(("trained", "kin"), [([True] * 5, 2), ([False] * 5, 2), ([True, False] * 2 + [True], 0)])
    def test_nothing_to_inherit(self, trained, kin):
        scores = np.ones((2, 5), dtype=np.float32)
        assert (Kin.find(self.TEXTS, np.array(trained), kin).inherit(scores.copy()) == scores).all()

    def test_fewer_parents_than_asked(self):
        kin = Kin.find(self.TEXTS, self.TRAINED, 99)
        assert kin.parents.shape == (2, 3)


class TestBoost:
    @pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
    def test_new_items_get_their_share(self, share):
        rng = np.random.default_rng(0)
        old, new = (rng.normal(size=(40, count)).astype(np.float32) * 3 for count in (30, 5))
        boost = boost_for_share(old, new - 4, share)
        both = np.concatenate([old, new - 4 + boost], axis=1).astype(np.float64)
        mass = np.exp(both[:, 30:]).sum(1) / np.exp(both).sum(1)
        assert mass.mean() == pytest.approx(share, rel=1e-4)

    @pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
    def test_an_impossible_share_changes_nothing(self, share):
        assert boost_for_share(np.zeros((2, 3)), np.zeros((2, 1)), share) == 0

    def test_nothing_old_or_nothing_new(self):
        assert boost_for_share(np.zeros((2, 3)), np.zeros((2, 0)), 0.5) == 0
        assert boost_for_share(np.zeros((2, 0)), np.zeros((2, 3)), 0.5) == 0
