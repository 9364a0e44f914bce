"""Means, shrunk levels and the ridge prior: against hand-worked cases and a planted additive log."""

import numpy as np
import pytest

from m6rec.coldstart.closed_form import ClosedForm, Strengths


def test_levels_of_a_hand_worked_log() -> None:
    users, items, values = np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([1.0, 1.0, 0.0])
    found = ClosedForm.fit(users, items, values, 3, np.zeros((3, 0)), Strengths(user=1.0, item=1e12), rounds=1)
    assert found.mean == pytest.approx(2 / 3)
    # Items that are held at zero leave each user the mean of what she gave, shrunk by one judgement of zero.
    assert found.user_levels() == pytest.approx([(2 / 3) / 3, (-2 / 3) / 2, 0.0])
    # Without any judgement an item is at its prior; with one it is drawn towards what that leaves.
    exact = ClosedForm(0.5, np.zeros(2), np.zeros(2), np.zeros(0), Strengths(item=1.0))
    levels = exact.item_levels(np.array([0]), np.array([0]), np.array([1.0]), np.zeros(2))
    assert levels.tolist() == [0.25, 0.0]
    assert exact.scores(np.array([0, 1]), np.array([0, 1]), levels).tolist() == [0.75, 0.5]


def test_a_planted_additive_log_is_found_and_so_is_what_attributes_say() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(60, size=6000), rng.integers(80, size=6000)
    attributes = rng.integers(0, 2, (80, 3)).astype(np.float64)
    user, item = rng.normal(0, 1, 60), attributes @ [1.0, -1.0, 0.0]
    values = 3 + user[users] + item[items] + rng.normal(0, 0.1, 6000)
    known = items < 60  # the other items are new
    found = ClosedForm.fit(users[known], items[known], values[known], 60, attributes)
    priors = found.priors(attributes)
    assert np.corrcoef(priors[60:], item[60:])[0, 1] > 0.95
    assert np.corrcoef(found.user_levels(), user)[0, 1] > 0.98
    warm = np.flatnonzero(~known)[:200]
    errors = []
    for which in (warm[:0], warm):
        levels = found.item_levels(users[which], items[which], values[which], priors)
        errors.append(np.mean((found.scores(users[~known], items[~known], levels) - values[~known]) ** 2))
    assert errors[1] < errors[0]


def test_a_level_without_one_judgement_is_that_of_a_log_that_lacks_it() -> None:
    rng = np.random.default_rng(1)
    users, items, values = rng.integers(5, size=40), np.arange(40), rng.random(40)
    held = Strengths(item=1e12)  # items at zero, so that the mean alone is left out with the judgement
    whole = ClosedForm.fit(users, items, values, 5, np.zeros((40, 0)), held, rounds=1)
    without = whole.user_levels_without(users, values - whole.mean)
    keep = np.arange(40) != 7
    sums = np.bincount(users[keep], values[keep] - whole.mean, minlength=5)
    assert without[7] == pytest.approx(sums[users[7]] / (5 + np.bincount(users[keep], minlength=5)[users[7]]))


def test_nothing_known_is_the_mean_and_all_labels_equal_are_no_trouble() -> None:
    empty = np.zeros(0, dtype=np.int64)
    nothing = ClosedForm.fit(empty, empty, np.zeros(0), 2, np.ones((3, 2)))
    assert nothing.scores(np.array([0, 1]), np.array([2, 0]), nothing.priors(np.ones((3, 2)))).tolist() == [0.0, 0.0]
    same = ClosedForm.fit(np.array([0, 1]), np.array([0, 1]), np.ones(2), 2, np.eye(2))
    assert same.scores(np.array([0, 1]), np.array([1, 0]), same.priors(np.eye(2))).tolist() == [1.0, 1.0]
