import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.data.histories import Histories
from m6rec.tasks.retrieval.windows import NUM_GAPS, Windows, gap_buckets, window


def histories(lengths, **columns):
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    count = int(offsets[-1])
    return Histories(offsets, np.arange(count, dtype=np.int32), np.zeros(count, np.int8), max(1, count), **columns)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(2, 12), st.data())
def test_every_event_but_a_users_first_is_a_target_exactly_once(lengths, size, data):
    context = data.draw(st.integers(0, (size - 1) // 2 if size > 2 else 0))
    log = histories(lengths)
    segments = np.arange(log.num_events) + 100
    windows = Windows(log, segments, size, context)
    targets = []
    for found in windows:
        owned = log.of(found.user)
        assert 2 <= len(found) <= size
        assert owned.start <= found.events[0] <= found.events[-1] < owned.stop
        assert (np.diff(found.events) == 1).all()
        assert (found.segments == found.events + 100).all()
        targets += found.events[found.first_target :].tolist()
    firsts = {int(log.offsets[user]) for user in range(len(lengths))}
    expected = [event for event in range(log.num_events) if event not in firsts]
    assert sorted(targets) == expected
    assert windows.lengths().tolist() == [len(found) for found in windows]


def test_context_is_read_again_but_not_predicted_again():
    windows = Windows(histories([10]), np.arange(10), size=6, context=2)
    spans = [(found.events.tolist(), found.first_target) for found in windows]
    assert spans == [([4, 5, 6, 7, 8, 9], 3), ([1, 2, 3, 4, 5, 6], 3), ([0, 1, 2, 3], 1)]


def test_gaps_look_back_beyond_the_window():
    log = histories([4], times=np.array([0, 60, 7260, 7260]))
    assert window(log, np.arange(4), 0, 0, 4).gaps.tolist() == [0, 2, 7, 1]
    assert window(log, np.arange(4), 0, 2, 4).gaps.tolist() == [7, 1]


def test_another_users_time_is_no_gap():
    log = histories([1, 2], times=np.array([500_000, 0, 60]))
    assert window(log, np.arange(3), 1, 1, 3).gaps.tolist() == [0, 2]


def test_no_times_and_no_verbs_are_unknown():
    found = window(histories([3]), np.arange(3), 0, 0, 3)
    assert found.gaps.tolist() == found.verbs.tolist() == [0, 0, 0]


def test_verbs_are_numbered_from_one():
    log = histories([3], verbs=np.array([0, 2, 1], np.int16), verb_names=("view", "cart", "buy"))
    assert window(log, np.arange(3), 0, 1, 3).verbs.tolist() == [3, 2]


@pytest.mark.parametrize(("seconds", "bucket"), [(-50, 1), (0, 1), (59, 1), (60, 2), (180, 3), (10**12, NUM_GAPS - 1)])
def test_buckets_double(seconds, bucket):
    assert gap_buckets(np.array([0, seconds])).tolist() == [0, bucket]
