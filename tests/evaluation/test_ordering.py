import numpy as np
import pytest
from scipy.stats import chisquare

from m6rec.errors import DataError
from m6rec.evaluation.ordering import EXCLUDED, order_keys, top


def test_keys_have_the_order_of_the_scores():
    scores = np.array([[-np.inf, -3.5, -1e-30, 0.0, 1e-30, 2.0, 3e38]], np.float32)
    keys = order_keys(scores, np.array([4]), np.arange(7), seed=0)
    assert (np.diff(keys[0].astype(object)) > 0).all()
    assert (keys != EXCLUDED).all()


def test_both_zeros_tie():
    wins = 0
    for seed in range(200):
        keys = order_keys(np.array([[0.0, -0.0]], np.float32), np.array([1]), np.arange(2), seed)
        wins += keys[0, 0] > keys[0, 1]
    assert 60 < wins < 140


def test_keys_depend_on_seed_user_and_item_alone():
    scores = np.zeros((3, 50), np.float32)
    keys = order_keys(scores, np.array([7, 8, 9]), np.arange(50), seed=3)
    columns = np.random.default_rng(0).permutation(50)
    again = order_keys(scores[:2], np.array([9, 7]), np.stack([columns, columns]), seed=3)
    np.testing.assert_array_equal(again, keys[[2, 0]][:, columns])
    assert len(np.unique(keys[0])) == 50
    assert not np.array_equal(np.argsort(keys[0]), np.argsort(keys[1]))
    assert not np.array_equal(
        np.argsort(keys[0]), np.argsort(order_keys(scores, np.array([7] * 3), np.arange(50), 4)[0])
    )


def test_ties_are_broken_evenly():
    users = np.arange(20_000)
    keys = order_keys(np.zeros((len(users), 8), np.float32), users, np.arange(8), seed=1)
    for column in range(8):
        ranks = (keys > keys[:, [column]]).sum(1)
        assert chisquare(np.bincount(ranks, minlength=8)).pvalue > 1e-4


def test_top_equals_a_full_sort():
    keys = np.random.default_rng(0).permutation(600).reshape(10, 60).astype(np.uint64) + np.uint64(1)
    keys[:, :57][3] = EXCLUDED
    expected = np.argsort(keys, axis=1)[:, ::-1][:, :5].copy()
    expected[3, 3:] = -1
    np.testing.assert_array_equal(top(keys, 5), expected)
    assert top(keys[:, :3], 9).shape == (10, 3)


def test_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        order_keys(np.array([[np.nan]], np.float32), np.array([0]), np.array([0]), 0)
