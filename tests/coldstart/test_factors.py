import numpy as np
import pytest

from m6rec.coldstart.events import Rates
from m6rec.coldstart.factors import Factors
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


def test_a_judgement_is_of_an_item_as_other_folds_have_it(planted):
    rows, places, left, _ = planted
    found = fit(planted)
    inside = rows % 3 == 0
    one, other = found.without_own([inside, ~inside], rows, places, left), found.items()
    # What its own fold says of an item changes nothing for that fold.
    turned = np.where(inside, -left, left)
    assert found.without_own([inside, ~inside], rows, places, turned)[inside] == pytest.approx(one[inside])
    assert one == pytest.approx(other[places], abs=1.0)
    assert not np.allclose(one, other[places], atol=1e-3)


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


def test_nobody_sees_what_her_own_fold_says_of_an_item():
    users, attributes = episodes(20, 5, 9, num_items=30), np.zeros((30, 1))
    rates = Rates.of(users, attributes)
    levels, counts = rates.without_own(users)
    for inside in users.folds():
        others = np.bincount(users.items[~inside], minlength=30)
        assert np.array_equal(counts[inside], others[users.items[inside]])
        # All users of a fold see one level, so that it cannot tell who of them said yes.
        for item in np.unique(users.items[inside]):
            assert len(np.unique(levels[inside & (users.items == item)])) == 1
    alone = counts == 0
    assert alone.any()
    assert levels[alone] == pytest.approx(rates.form.mean)
