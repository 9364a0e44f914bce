import numpy as np
import pytest

from m6rec.coldstart.events import Rates
from m6rec.coldstart.factors import Factors, _solved
from tests.coldstart.toy import episodes


@pytest.fixture(scope="module")
def planted():
    """Users and items along two directions, judged with little noise."""
    rng = np.random.default_rng(0)
    tastes, items = rng.normal(size=(80, 2)), rng.normal(size=(40, 2))
    rows, places = np.nonzero(rng.random((80, 40)) < 0.6)
    left = (tastes[rows] * items[places]).sum(1) * 0.5 + rng.normal(size=len(rows)) * 0.1
    return rows, places, left, items


def fit(planted, **settings):
    rows, places, left, _ = planted
    return Factors.fit(rows, places, left, 80, np.zeros((40, 1)), dim=2, seed=0, shrink=1.0, **settings)


def test_it_finds_the_planted_directions(planted):
    found, items = fit(planted).items(), planted[3]
    explained = found @ np.linalg.lstsq(found, items, rcond=None)[0]
    assert ((items - explained) ** 2).mean() < 0.05 * items.var()


def test_judgements_are_spread_evenly_and_apart(planted):
    vectors = fit(planted).items()[planted[1]]
    assert vectors.T @ vectors / len(vectors) == pytest.approx(np.eye(2), abs=1e-6)


def test_one_judgement_less_is_a_fit_without_it(planted):
    rows, places, left, _ = planted
    found = fit(planted)
    # The items' last turn once more, without judgement 7.
    kept = np.arange(len(rows)) != 7
    users = found.users
    own, _ = _solved(places[kept], users[rows[kept]], left[kept], 40, 1.0)
    trust = (found.counts[places[7]] - 1) / (found.strength + found.counts[places[7]] - 1)
    expected = trust * own[places[7]] @ found.turn
    assert found.without_own(rows, places, left)[7] == pytest.approx(expected, abs=1e-8)


def test_an_item_that_nobody_judged_goes_by_its_features():
    rng = np.random.default_rng(1)
    features = np.repeat(np.eye(2), 20, axis=0)
    tastes = rng.normal(size=60)
    rows, places = np.nonzero(rng.random((60, 40)) < 0.9)
    left = tastes[rows] * np.where(places < 20, 1.0, -1.0)
    seen = places != 0
    found = Factors.fit(rows[seen], places[seen], left[seen], 60, features, dim=1, seed=0)
    vectors = found.items()[:, 0]
    assert np.sign(vectors[0]) == np.sign(vectors[1:20].mean()) != np.sign(vectors[20:].mean())
    assert (features[:1] @ found.strangers())[0] == pytest.approx(found.items()[0])


def test_an_item_level_without_its_own_judgement_does_not_know_it():
    users, attributes = episodes(20, 5, 9, num_items=30), np.zeros((30, 1))
    rates = Rates.of(users, attributes)
    levels, counts = rates.without_own(users)
    assert np.array_equal(counts, rates.counts[users.items] - 1)
    alone = counts == 0
    assert alone.any()
    assert levels[alone] == pytest.approx(rates.form.mean)
