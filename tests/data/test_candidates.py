import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.data.candidates import Candidates, GivenCandidates, SampledCandidates
from m6rec.data.histories import Histories
from m6rec.errors import DataError


def queries(num_users=30, num_items=60, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, num_users)
    offsets = np.r_[0, np.cumsum(lengths)]
    items = rng.integers(-1, num_items, offsets[-1]).astype(np.int32)
    splits = np.zeros(len(items), np.int8)
    splits[offsets[1:] - 1], splits[offsets[1:] - 2] = 2, 1
    return Histories(offsets, items, splits, num_items).queries("test")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(0, 40), st.integers(0, 5))
def test_sample_holds_no_seen_item_and_no_target(data_seed, num, seed):
    asked = queries(seed=data_seed)
    sampled = SampledCandidates(num, seed).of(asked)
    assert sampled.shape == (len(asked), num)
    for query, row in enumerate(sampled):
        seen = asked.history.items[asked.history.of(asked.users[query])]
        assert len(set(row.tolist())) == num
        assert not {*row.tolist()} & {*seen.tolist(), *asked.targets_of(query).tolist()}
        assert ((row >= 0) & (row < asked.history.num_items)).all()


def test_sample_ignores_order_and_sharding():
    asked = queries()
    whole = SampledCandidates(20, seed=3).of(asked)
    order = np.random.default_rng(1).permutation(len(asked))
    np.testing.assert_array_equal(SampledCandidates(20, seed=3).of(asked.take(order)), whole[order])
    np.testing.assert_array_equal(SampledCandidates(20, seed=3).of(asked.take(order[:7])), whole[order[:7]])
    assert (SampledCandidates(20, seed=4).of(asked) != whole).any()


def test_sample_is_uniform_over_what_is_left():
    offsets, items = np.array([0, 3]), np.array([0, 2, 9], np.int32)
    asked = Histories(offsets, items, np.array([0, 0, 2], np.int8), 10).queries("test")
    drawn = np.concatenate([SampledCandidates(3, seed).of(asked)[0] for seed in range(2000)])
    counts = np.bincount(drawn, minlength=10)
    assert (counts[[0, 2, 9]] == 0).all()
    left = counts[[1, 3, 4, 5, 6, 7, 8]]
    assert np.abs(left / left.mean() - 1).max() < 0.15


def test_sample_larger_than_what_is_left():
    with pytest.raises(DataError, match=r"num=60 sampled candidates, but user \d+ has only"):
        SampledCandidates(60).of(queries())


def test_given_lists_are_padded_and_checked():
    asked = queries(num_users=2)
    assert GivenCandidates({0: [4], 1: [1, 2]}).of(asked).tolist() == [[4, -1], [1, 2]]
    with pytest.raises(DataError, match="user 1 has no list"):
        GivenCandidates({0: [4]}).of(asked)
    with pytest.raises(DataError, match="user 1 hold an item outside 0 to 59"):
        GivenCandidates({0: [4], 1: [60]}).of(asked)


def test_names():
    assert SampledCandidates(100).name == "sampled=100"
    assert GivenCandidates({}).name == "given"
    assert isinstance(SampledCandidates(), Candidates)
    assert isinstance(GivenCandidates({}), Candidates)
