"""Which events are held out. This module knows arrays of one or many users' events; it reads and writes nothing.

Every rule gives codes that never fall inside one user's events (0 train, 1 valid, 2 test), so "what may be known" is
always a user's earlier events.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import SPLIT_CODES
from m6rec.errors import DataError

Rule = Literal["leave-one-out", "temporal", "ratio", "given"]
MIN_EVENTS = 3
"""Users with fewer events of items are never held out by leave-one-out and ratio: all they did is training."""

NAMES = {**SPLIT_CODES, "val": 1, "validation": 1, "dev": 1, "eval": 1, "training": 0}
"""Words for splits that sources use -> code."""


def leave_one_out(offsets: NDArray[np.int64], has_item: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Hold out each user's last event for test and the second last for validation.

    Only events of items count. An event without one (a search) belongs to the item event before it: it may be known
    when the next one is asked for.

    Args:
        offsets: ``[num_users + 1]`` user ``u`` owns events ``offsets[u]:offsets[u + 1]``.
        has_item: ``[num_events]`` bool.

    Returns:
        ``[num_events]`` codes.

    >>> leave_one_out(np.array([0, 4, 6]), np.array([True, True, True, True, True, True])).tolist()
    [0, 0, 1, 2, 0, 0]
    """
    counts = _counts(offsets, has_item)
    one = (counts >= MIN_EVENTS).astype(np.int64)
    return hold_out_last(offsets, has_item, one, one)


def ratio(offsets: NDArray[np.int64], has_item: NDArray[np.bool_], valid: float, test: float) -> NDArray[np.int8]:
    """Hold out the last share of each user's events for test and the share before it for validation.

    Shares are rounded down, but a share above zero gives at least one event to users with three or more.

    >>> ratio(np.array([0, 5]), np.ones(5, bool), 0.2, 0.4).tolist()
    [0, 0, 1, 2, 2]
    """
    counts = _counts(offsets, has_item)
    enough = counts >= MIN_EVENTS

    def held(share: float) -> NDArray[np.int64]:
        return np.where(enough & (share > 0), np.maximum(1, np.floor(counts * share + 1e-9)), 0).astype(np.int64)

    num_test = np.minimum(held(test), np.maximum(counts - 1, 0))
    return hold_out_last(offsets, has_item, np.minimum(held(valid), np.maximum(counts - num_test - 1, 0)), num_test)


def hold_out_last(
    offsets: NDArray[np.int64], has_item: NDArray[np.bool_], num_valid: NDArray[np.int64], num_test: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Hold out each user's last ``num_test[u]`` events of items for test and ``num_valid[u]`` before for validation."""
    lengths = np.diff(offsets)
    upto = np.cumsum(has_item)
    ends = np.r_[0, upto][offsets[1:]]
    still_to_come = np.repeat(ends, lengths) - upto
    test = np.repeat(num_test, lengths)
    held_out = np.repeat(num_test + num_valid, lengths)
    return ((still_to_come < test).astype(np.int8) + (still_to_come < held_out)).astype(np.int8)


def temporal(times: NDArray[np.int64], cutoffs: tuple[int, int]) -> NDArray[np.int8]:
    """Hold out what happened from ``cutoffs[0]`` on for validation, from ``cutoffs[1]`` on for test (Unix seconds).

    >>> temporal(np.array([1, 5, 9]), (5, 9)).tolist()
    [0, 1, 2]
    """
    return np.searchsorted(np.asarray(cutoffs), times, side="right").astype(np.int8)


def time_cutoffs(times: NDArray[np.int64], shares: tuple[float, float, float]) -> tuple[int, int]:
    """Return the seconds from which validation and test begin, so that the earliest ``shares[0]`` of events train.

    Events of one second are never torn apart; they all lie on the later side of their cutoff.

    Raises:
        DataError: every event has the same time, or a share leaves training without an event.
    """
    if not len(times):
        raise DataError(
            "got no event with a time, which split=temporal needs; use split=leave-one-out, or map the time"
        )
    last = len(times) - 1
    places = [min(int(np.floor(share * len(times) + 1e-9)), last) for share in (shares[0], shares[0] + shares[1])]
    ordered = np.partition(times, places)
    valid, test = int(ordered[places[0]]), int(ordered[places[1]])
    if valid <= int(times.min()):
        raise DataError(
            f"split=temporal with shares {shares} leaves no event for training: the cutoff, second {valid}, is the "
            "first of the log; use another share, or another split"
        )
    return valid, test


def _counts(offsets: NDArray[np.int64], has_item: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.diff(np.r_[0, np.cumsum(has_item)][offsets])
