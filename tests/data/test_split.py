import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.data.split import leave_one_out, ratio, temporal, time_cutoffs
from m6rec.errors import DataError

users = st.lists(st.lists(st.booleans(), max_size=8), min_size=1, max_size=6)


def arrays(users):
    offsets = np.cumsum([0, *map(len, users)])
    return offsets.astype(np.int64), np.array([has for user in users for has in user], dtype=bool)


def test_leave_one_out_by_hand():
    #                 one user: search, a, search, b, search, c, search
    has_item = np.array([False, True, False, True, False, True, False])
    assert leave_one_out(np.array([0, 7]), has_item).tolist() == [0, 0, 0, 1, 1, 2, 2]


@settings(deadline=None)
@given(users)
def test_leave_one_out_holds_out_the_last_two_items(users):
    offsets, has_item = arrays(users)
    codes = leave_one_out(offsets, has_item)
    for start, end in itertools.pairwise(offsets):
        mine, items = codes[start:end], has_item[start:end]
        assert (np.diff(mine) >= 0).all()
        held = mine[items]
        assert held.tolist() == ([0] * (len(held) - 2) + [1, 2] if len(held) >= 3 else [0] * len(held))


@settings(deadline=None)
@given(users, st.sampled_from([(0.1, 0.1), (0.25, 0.25), (0.0, 0.5), (0.3, 0.0), (0.0, 0.0), (0.4, 0.5)]))
def test_ratio_never_goes_back_and_always_trains(users, shares):
    offsets, has_item = arrays(users)
    codes = ratio(offsets, has_item, *shares)
    for start, end in itertools.pairwise(offsets):
        mine = codes[start:end]
        assert (np.diff(mine) >= 0).all()
        held = mine[has_item[start:end]]
        if len(held):
            assert held[0] == 0
        for code, share in ((1, shares[0]), (2, shares[1])):
            if len(held) < 3 or not share:
                assert code not in held
            else:
                assert (held == code).sum() >= (1 if code == 2 or len(held) > 2 else 0)


@pytest.mark.parametrize(("length", "held"), [(10, [1, 1]), (25, [2, 2]), (3, [1, 1]), (2, [0, 0])])
def test_ratio_by_hand(length, held):
    codes = ratio(np.array([0, length]), np.ones(length, bool), 0.1, 0.1)
    assert np.bincount(codes, minlength=3)[1:].tolist() == held


def test_temporal_never_tears_a_second_apart():
    times = np.array([1, 2, 3, 4, 5, 5, 5, 5, 9, 9])
    cutoffs = time_cutoffs(times, (0.6, 0.2, 0.2))
    assert cutoffs == (5, 9)
    assert temporal(times, cutoffs).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


@given(st.lists(st.integers(0, 50), min_size=1), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5)]))
def test_temporal_training_is_strictly_before_all_else(times, shares):
    times = np.array(times)
    try:
        codes = temporal(times, time_cutoffs(times, shares))
    except DataError:
        return
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        if (codes == earlier).any() and (codes == later).any():
            assert times[codes == earlier].max() < times[codes == later].min()
    assert (codes == 0).mean() <= shares[0] + 1e-9


@pytest.mark.parametrize("times", [[], [7], [7, 7, 7]])
def test_temporal_needs_different_times(times):
    with pytest.raises(DataError, match="split=temporal"):
        time_cutoffs(np.array(times, dtype=np.int64), (0.8, 0.1, 0.1))
