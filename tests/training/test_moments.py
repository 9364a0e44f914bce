"""Points in histories, and what users have taken."""

import numpy as np

from m6rec.data.histories import Histories
from m6rec.training.moments import Moments, TakenItems

LOG = Histories(
    offsets=np.array([0, 3, 3, 8]),
    items=np.array([4, -1, 2, 7, 7, 0, 3, 9], np.int32),
    splits=np.zeros(8, np.int8),
    num_items=10,
)


def test_before_events_and_after_everything():
    moments = Moments.before(LOG, np.array([2, 3, 7]))
    assert moments.users.tolist() == [0, 2, 2]
    assert moments.lengths.tolist() == [2, 0, 4]
    assert [moments.items(row, 3).tolist() for row in range(3)] == [[4, -1], [], [7, 0, 3]]
    after = Moments.after(LOG, np.array([2, 0]))
    assert [after.items(row, 2).tolist() for row in range(2)] == [[3, 9], [-1, 2]]
    assert after.take(np.array([1])).users.tolist() == [0]


def test_taken():
    taken = TakenItems(LOG)
    found = taken.contain(np.array([0, 1, 2]), np.array([[4, -1, 7], [4, 2, -1], [7, 9, 4]]))
    assert found.tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    rows, items = taken.of(np.array([2, 1, 0, 2]))
    assert rows.tolist() == [0, 0, 0, 0, 2, 2, 3, 3, 3, 3]
    assert items.tolist() == [0, 3, 7, 9, 2, 4, 0, 3, 7, 9]


def test_nobody_took_anything():
    taken = TakenItems(LOG.select(np.zeros(8, bool)))
    assert not taken.contain(np.array([0]), np.array([[1, -1]])).any()
    assert [len(found) for found in taken.of(np.array([0, 2]))] == [0, 0]
