"""Points in users' histories at which something is asked for: what comes next? Knows no model."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Histories


@dataclass(frozen=True)
class Moments:
    """A question each: user ``users[i]`` has done the first ``lengths[i]`` of their events, what comes next?

    Args:
        history: what may be known; indexed by user.
        users: ``[num_moments]`` int64.
        lengths: ``[num_moments]`` int64 events of the user that have happened by then.
    """

    history: Histories
    users: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def before(cls, history: Histories, events: NDArray[np.integer]) -> "Moments":
        """Return the moments right before events, given by their numbers in ``history``."""
        users = np.searchsorted(history.offsets, events, side="right") - 1
        return cls(history, users.astype(np.int64), events - history.offsets[users])

    @classmethod
    def after(cls, history: Histories, users: NDArray[np.integer]) -> "Moments":
        """Return the moments after everything that users have done."""
        return cls(history, np.asarray(users, np.int64), np.diff(history.offsets)[users].astype(np.int64))

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: NDArray[np.integer]) -> "Moments":
        """Return the moments numbered ``which``, in that order."""
        return replace(self, users=self.users[which], lengths=self.lengths[which])

    def span(self, which: int, at_most: int) -> tuple[int, int]:
        """Return the first and the end of the last ``at_most`` events before one moment, as event numbers."""
        begin = int(self.history.offsets[self.users[which]])
        stop = begin + int(self.lengths[which])
        return max(begin, stop - at_most), stop

    def items(self, which: int, at_most: int) -> NDArray[np.int32]:
        """Return the items of the last ``at_most`` events before one moment, oldest first; ``-1`` = none."""
        return self.history.items[slice(*self.span(which, at_most))]


class TakenItems:
    """What each user has taken in some histories, at any time: no negative of theirs.

    Args:
        history: e.g. the training events.
    """

    def __init__(self, history: Histories) -> None:
        real = history.items >= 0
        self.num_items = history.num_items
        self._pairs = np.unique(history.users[real].astype(np.int64) * self.num_items + history.items[real])

    def contain(self, users: NDArray[np.int64], items: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return ``[n, k]``: user ``users[i]`` has taken ``items[i, j]``; never true of ``-1``."""
        pairs = users[:, None] * self.num_items + items
        places = np.minimum(np.searchsorted(self._pairs, pairs), max(0, len(self._pairs) - 1))
        found: NDArray[np.bool_] = (items >= 0) & (len(self._pairs) > 0)
        return found & (self._pairs[places] == pairs) if len(self._pairs) else found

    def of(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (place in ``users``, item) of everything that they have taken, by place."""
        starts = np.searchsorted(self._pairs, users * self.num_items)
        counts = np.searchsorted(self._pairs, (users + 1) * self.num_items) - starts
        rows = np.repeat(np.arange(len(users)), counts)
        places = np.arange(len(rows)) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        return rows, self._pairs[places] % self.num_items
