"""Counting per item: how many events, how many a yes; in all, before a moment, or without one user's own.

This module knows no record and no words.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]


class Tally:
    """Events of items, sorted so that any part of them is counted by a search.

    Args:
        items: ``[n]`` item of each event.
        users: ``[n]`` user of each event.
        answers: ``[n]`` 1 = yes, 0 = no.
        times: ``[n]`` when, or ``None``.
        num_items: size of the catalogue.

    Every method returns, for each question, the yes and the events of its item, and the events of all items.
    """

    def __init__(
        self, items: Integers, users: Integers, answers: Floats, times: Integers | None, num_items: int
    ) -> None:
        self.timed, self._num_items = times is not None, num_items
        self.count: Floats = np.bincount(items, minlength=num_items).astype(np.float64)
        self.yes: Floats = np.bincount(items, weights=answers, minlength=num_items).astype(np.float64)
        self._own = _Runs(users.astype(np.int64) * num_items + items, answers)
        if times is not None:
            self._moments, ranks = np.unique(times, return_inverse=True)
            self._past = _Runs(items.astype(np.int64) * self._width + ranks, answers)
            self._sorted_times = np.sort(times)

    @property
    def mean(self) -> float:
        """Share of yes among all events; one half where there are none."""
        return float(self.yes.sum() / self.count.sum()) if self.count.any() else 0.5

    @property
    def _width(self) -> int:
        return len(self._moments) + 1

    def all(self, items: Integers) -> tuple[Floats, Floats, Floats]:
        """Count everything."""
        return self.yes[items], self.count[items], np.full(len(items), self.count.sum())

    def before(self, items: Integers, times: Floats) -> tuple[Floats, Floats, Floats]:
        """Count what lies strictly before ``times`` (``[k]``; only where :attr:`timed`)."""
        start = items.astype(np.int64) * self._width
        yes, count = self._past.between(start, start + np.searchsorted(self._moments, times, side="left"))
        return yes, count, np.searchsorted(self._sorted_times, times, side="left").astype(np.float64)

    def without(self, items: Integers, users: Integers) -> tuple[Floats, Floats, Floats]:
        """Count everything but what ``users`` (``[k]``) themselves did with the item."""
        key = users.astype(np.int64) * self._num_items + items
        yes, count = self._own.between(key, key + 1)
        return self.yes[items] - yes, self.count[items] - count, self.count.sum() - count


class _Runs:
    """Weighted keys in order: sums over ranges of keys."""

    def __init__(self, keys: NDArray[np.int64], weights: Floats) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._sums = keys[order], np.concatenate([[0.0], np.cumsum(weights[order])])

    def between(self, first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the weight and the number of keys from ``first`` up to, not including, ``end``."""
        low, high = np.searchsorted(self._keys, first), np.searchsorted(self._keys, end)
        return self._sums[high] - self._sums[low], (high - low).astype(np.float64)
