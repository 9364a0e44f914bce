"""Sparse item-to-item weights in compressed rows, and the few things counting baselines do with them.

Plain numpy (scipy is no core dependency). It knows no method.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Histories


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix ``[num_rows, num_columns]`` by rows.

    Args:
        offsets: ``[num_rows + 1]`` int64.
        columns: ``[num_entries]`` int32.
        weights: ``[num_entries]`` float32.
        num_columns: width.
    """

    offsets: NDArray[np.int64]
    columns: NDArray[np.int32]
    weights: NDArray[np.float32]
    num_columns: int

    @classmethod
    def sum_of(
        cls,
        rows: NDArray[np.integer],
        columns: NDArray[np.integer],
        weights: NDArray[np.floating],
        shape: tuple[int, int],
    ) -> "SparseRows":
        """Build from entries in any order; entries of the same place add up."""
        places, where = np.unique(np.asarray(rows, np.int64) * shape[1] + columns, return_inverse=True)
        counts = np.bincount(places // shape[1], minlength=shape[0])
        return cls(
            offsets=np.r_[0, np.cumsum(counts)].astype(np.int64),
            columns=(places % shape[1]).astype(np.int32),
            weights=np.bincount(where, weights, minlength=len(places)).astype(np.float32),
            num_columns=shape[1],
        )

    def mix(
        self, places: NDArray[np.int64], rows: NDArray[np.integer], weights: NDArray[np.floating], num_places: int
    ) -> NDArray[np.float32]:
        """Return ``[num_places, num_columns]``: row ``rows[n]`` times ``weights[n]``, summed at ``places[n]``."""
        starts, counts = self.offsets[rows], self.offsets[np.asarray(rows, np.int64) + 1] - self.offsets[rows]
        entries = np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        flat = np.repeat(places, counts) * self.num_columns + self.columns[entries]
        summed = np.bincount(
            flat, self.weights[entries] * np.repeat(weights, counts), minlength=num_places * self.num_columns
        )
        return summed.reshape(num_places, self.num_columns).astype(np.float32)


def recent_events(
    history: Histories, users: NDArray[np.integer], last: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the events with an item that several users had most recently.

    Args:
        history: what may be known.
        users: ``[n]`` user ids.
        last: at most this many per user; ``None`` = all.

    Returns:
        ``[m]`` place in ``users`` (ascending); ``[m]`` event number, oldest first; ``[m]`` age: 0 = the last one.
    """
    places, events = history.events_of(users)
    real = history.items[events] >= 0
    places, events = places[real], events[real]
    ends = np.cumsum(np.bincount(places, minlength=len(users)))
    ages = ends[places] - 1 - np.arange(len(places))
    keep = ages < (len(ages) + 1 if last is None else last)
    return places[keep], events[keep], ages[keep]


def item_counts(history: Histories) -> NDArray[np.int64]:
    """Return ``[num_items]`` how many events each item has."""
    return np.bincount(history.items[history.items >= 0], minlength=history.num_items)


def popularity_prior(history: Histories, weight: float) -> NDArray[np.float32]:
    """Return ``[num_items]`` item counts scaled so that the most popular has ``weight``."""
    counts = item_counts(history)
    return (weight * counts / max(1, counts.max(initial=0))).astype(np.float32)
