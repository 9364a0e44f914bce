"""Popularity, item-kNN, Markov and rate, each against the plainest code that says the same."""

import collections

import numpy as np
import pytest

from m6rec.baselines.itemknn import ItemKNN, ItemKNNConfig
from m6rec.baselines.markov import Markov, MarkovConfig
from m6rec.baselines.popularity import Popularity
from m6rec.baselines.rate import Rate, RateConfig
from m6rec.baselines.sparse import SparseRows, recent_events
from m6rec.data.histories import Histories, Judgements
from tests.contracts.baseline_contract import BaselineContract, PairBaselineContract, ring_log


class TestPopularity(BaselineContract):
    name, learns = "popularity", "nothing"


class TestItemKNN(BaselineContract):
    name, learns = "itemknn", "groups"


class TestItemKNNOnAllHistory(BaselineContract):
    name, learns, settings = "itemknn", "groups", {"last": None}


class TestMarkov(BaselineContract):
    name, learns = "markov", "order"


class TestRate(PairBaselineContract):
    name = "rate"


def sequences(history: Histories) -> list[list[int]]:
    return [[i for i in history.items[history.of(u)].tolist() if i >= 0] for u in range(history.num_users)]


@pytest.fixture(scope="module")
def log() -> Histories:
    return ring_log(60, seed=1)


def test_popularity_counts(log):
    baseline, train = Popularity(), log.before("train")
    baseline.fit(train)
    counts = collections.Counter(item for row in sequences(train) for item in row)
    assert baseline.score(log.queries("test"))[0].tolist() == [counts[item] for item in range(log.num_items)]


@pytest.mark.parametrize(("last", "shrinkage"), [(None, 0.0), (2, 3.0)])
def test_itemknn_equals_dense_cosines(log, last, shrinkage):
    train, queries = log.before("train"), log.queries("test")
    baseline = ItemKNN(ItemKNNConfig(last=last, shrinkage=shrinkage, popularity=0, num_neighbours=1000))
    baseline.fit(train)
    had = np.zeros((log.num_users, log.num_items))
    for user, row in enumerate(sequences(train)):
        had[user, row] = 1
    norms = np.sqrt(had.sum(0))
    cosines = had.T @ had / np.maximum(norms[:, None] * norms + shrinkage, 1e-9)
    np.fill_diagonal(cosines, 0)
    rows = [sequences(queries.history)[user] for user in queries.users]
    expected = [cosines[row if last is None else row[-last:]].sum(0) for row in rows]
    np.testing.assert_allclose(baseline.score(queries), expected, atol=1e-5)


def test_itemknn_in_small_blocks_and_few_neighbours(log, monkeypatch):
    whole, blocks = ItemKNN(ItemKNNConfig(num_neighbours=3)), ItemKNN(ItemKNNConfig(num_neighbours=3))
    whole.fit(log.before("train"))
    monkeypatch.setattr("m6rec.baselines.itemknn.COUNTERS_AT_ONCE", 3 * log.num_items)
    blocks.fit(log.before("train"))
    queries = log.queries("test")
    np.testing.assert_array_equal(blocks.score(queries), whole.score(queries))
    assert np.diff(whole._neighbours.offsets).max() == 3


def test_markov_equals_a_dictionary(log):
    train, queries = log.before("train"), log.queries("test")
    baseline = Markov(MarkovConfig(window=2, last=2, damping=1.0, popularity=0))
    baseline.fit(train)
    counts = collections.defaultdict(float)
    for row in sequences(train):
        for place, first in enumerate(row):
            for distance, second in enumerate(row[place + 1 : place + 3], start=1):
                counts[first, second] += 1 / distance
    sums = collections.defaultdict(float)
    for (first, _), value in counts.items():
        sums[first] += value
    expected = np.zeros((len(queries), log.num_items))
    for q, user in enumerate(queries.users):
        for age, item in enumerate(sequences(queries.history)[user][::-1][:2]):
            for (first, second), value in counts.items():
                if first == item:
                    expected[q, second] += value / sums[item] / (1 + age)
    np.testing.assert_allclose(baseline.score(queries), expected, atol=1e-6)


def test_rate_by_hand(log):
    users, items = np.zeros(4, np.int32), np.array([1, 1, 1, 2], np.int32)
    labels, lengths = np.array([1, 1, 0, 0], np.float32), np.zeros(4, np.int64)
    pairs = Judgements(log.before("train"), users, items, labels, lengths)
    baseline = Rate(RateConfig(strength=2.0))
    baseline.fit_pairs(pairs)
    unseen = Judgements(log.before("train"), users, np.array([1, 2, 3, 3], np.int32), labels, lengths)
    np.testing.assert_allclose(baseline.score_pairs(unseen), [3 / 5, 1 / 3, 0.5, 0.5], rtol=1e-6)


def test_recent_events_are_the_last_ones_with_an_item(log):
    users = np.array([5, 2, 2])
    places, events, ages = recent_events(log, users, 3)
    for place, user in enumerate(users):
        mine = places == place
        row = sequences(log)[user][-3:]
        assert log.items[events[mine]].tolist() == row
        assert ages[mine].tolist() == list(range(len(row)))[::-1]


def test_sparse_rows_equal_a_dense_matrix():
    rng = np.random.default_rng(0)
    rows, columns, weights = rng.integers(0, 6, 40), rng.integers(0, 9, 40), rng.random(40)
    dense = np.zeros((6, 9))
    np.add.at(dense, (rows, columns), weights)
    sparse = SparseRows.sum_of(rows, columns, weights, (6, 9))
    places, picked, scale = np.array([0, 0, 2]), np.array([3, 1, 5]), np.array([1.0, 2.0, 0.5])
    expected = np.stack([dense[3] + 2 * dense[1], np.zeros(9), dense[5] / 2])
    np.testing.assert_allclose(sparse.mix(places, picked, scale, 3), expected, rtol=1e-6)


def test_a_log_without_events_gives_zeros():
    nothing = Histories(np.zeros(3, np.int64), np.empty(0, np.int32), np.empty(0, np.int8), 4)
    for baseline in (Popularity(), ItemKNN(), Markov()):
        baseline.fit(nothing)
        queries = ring_log(2).queries("test")
        empty = Histories(np.zeros(3, np.int64), np.empty(0, np.int32), np.empty(0, np.int8), 4)
        assert not baseline.score(type(queries)(empty, queries.users, queries.target_offsets, queries.targets)).any()
