"""Users as learning tasks: what each judged, in time order, and which users are learnt from, chosen by, tested on.

A split by users, not by time: nothing that a test user ever did is known to anybody. Knows no model and no text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.data.store import Dataset
from m6rec.errors import DataError
from m6rec.tasks.ranking.data import every_event, with_sampled_negatives

SIZES = (0, 1, 2, 5, 10, 20)
"""Support sizes that every table shows."""

FOLDS = 5
"""Parts of the users that are learnt from; what is known of items when one is learnt from comes from the others."""

Part = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Episodes:
    """Judged items of some users, grouped by user and ordered in time; no user judges an item twice.

    Args:
        users: ``[num_users]`` int64 user ids of the dataset.
        offsets: ``[num_users + 1]`` int64; row ``u`` owns events ``offsets[u]:offsets[u + 1]``.
        items: ``[num_events]`` int64 item ids.
        values: ``[num_events]`` float32 the rating, or the label again where there are no ratings.
        labels: ``[num_events]`` float32, 0 or 1.
        times: ``[num_events]`` int64 Unix seconds; ``None`` = only the order is known.
    """

    users: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    times: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """``[num_users]`` judged items of each user."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """``[num_events]`` the row of each event's user."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def folds(self) -> list[NDArray[np.bool_]]:
        """Return the events of every :data:`FOLDS`-th user, ``[num_events]`` bool each; together they are all."""
        return [self.rows % FOLDS == fold for fold in range(FOLDS)]

    def standard(self, mean: float, scale: float) -> NDArray[np.float64]:
        """Return ``[num_events]`` values in standard units."""
        return (self.values.astype(np.float64) - mean) / scale

    def take(self, rows: NDArray[np.integer]) -> "Episodes":
        """Return the users in some rows, in that order."""
        counts = self.lengths[rows]
        ends = np.cumsum(counts)
        places = np.repeat(self.offsets[:-1][rows] - (ends - counts), counts) + np.arange(counts.sum())
        return Episodes(
            self.users[rows],
            np.r_[0, ends].astype(np.int64),
            self.items[places],
            self.values[places],
            self.labels[places],
            None if self.times is None else self.times[places],
        )

    @classmethod
    def of(cls, dataset: Dataset, threshold: float | None, num_negatives: int = 4, seed: int = 0) -> "Episodes":
        """Return everything that users of a dataset judged, whatever the dataset's own split.

        From impressions where there are any; else from ratings with a threshold; else every event is a yes, and random
        unmet items beside it are a no. Of two judgements of one item the first one counts.

        Raises:
            DataError: a threshold for a log without ratings.
        """
        users, items, values, labels, order, times = _judged(dataset, threshold, num_negatives, seed)
        # Within one moment a seeded order: else a yes would always stand before the no's beside it.
        shuffle = np.random.default_rng(seed).permutation(len(users))
        sorted_rows = np.lexsort((shuffle, order, users))
        pairs = users[sorted_rows].astype(np.int64) * dataset.num_items + items[sorted_rows]
        _, first = np.unique(pairs, return_index=True)
        kept = sorted_rows[np.sort(first)]
        who, counts = np.unique(users[kept], return_counts=True)
        return cls(
            who.astype(np.int64),
            np.r_[0, np.cumsum(counts)].astype(np.int64),
            items[kept].astype(np.int64),
            values[kept].astype(np.float32),
            labels[kept].astype(np.float32),
            None if times is None else times[kept],
        )


Columns = tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray | None]  # type: ignore[type-arg]


def _judged(dataset: Dataset, threshold: float | None, num_negatives: int, seed: int) -> Columns:
    """Return users, items, values, labels, what orders them within a user, and their times."""
    histories = dataset.histories()
    if dataset.impressions is not None:
        parts = [dataset.judgements(split) for split in ("train", "valid", "test")]
        users, items, labels, times = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("users", "items", "labels", "times")
        )
        return users, items, labels, labels, times, times
    if threshold is None:
        # As one period: what a user takes up later is no negative before.
        whole = replace(histories, splits=np.zeros_like(histories.splits))
        pairs = with_sampled_negatives(every_event(whole), num_negatives, seed)
        return pairs.users, pairs.items, pairs.labels, pairs.labels, pairs.lengths, pairs.times
    if histories.values is None:
        raise DataError(f"{dataset.folder} has no ratings, which a threshold is for; leave task.threshold out")
    chosen = np.flatnonzero((histories.items >= 0) & ~np.isnan(histories.values))
    values, labels = histories.values[chosen], histories.values[chosen] >= threshold
    moments = None if histories.times is None else histories.times[chosen]
    return histories.users[chosen], histories.items[chosen], values, labels, chosen, moments


@dataclass(frozen=True)
class Protocol:
    """How users are divided and their events cut; all change results."""

    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Of the users with enough events: learnt from, chosen by, tested on. All others are learnt from."""
    support: int = 20
    """Most events of a user that may be known; the query set begins behind them, whatever the support size."""
    min_queries: int = 10
    """Fewest events behind the support of a user that is tested or chosen by."""
    max_queries: int = 100
    """Most events in a query set, so that no user outweighs the others."""

    def __post_init__(self) -> None:
        if len(self.shares) != 3 or min(self.shares) < 0 or not 0.999 < sum(self.shares) < 1.001:
            raise DataError(f"shares: got {self.shares}, expected three shares that sum to 1")
        for name in ("support", "min_queries", "max_queries"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}: got {getattr(self, name)}, expected 1 or more")

    def sizes(self) -> tuple[int, ...]:
        """Return the support sizes of every table, up to the largest."""
        return tuple(size for size in SIZES if size <= self.support)

    def divide(self, episodes: Episodes, seed: int) -> dict[Part, Episodes]:
        """Return the users of each part; no user is in two.

        Raises:
            DataError: too few users with enough events to have one in each part.
        """
        enough = np.flatnonzero(episodes.lengths >= self.support + self.min_queries)
        order = np.random.default_rng(seed).permutation(enough)
        held = [max(1, round(share * len(enough))) for share in self.shares[1:]]
        if len(enough) < sum(held) + 1:
            raise DataError(
                f"got {len(enough)} users with {self.support + self.min_queries} judged items or more, expected at "
                "least 3; set task.protocol.support or min_queries lower"
            )
        valid, test = order[: held[0]], order[held[0] : sum(held)]
        rows: dict[Part, NDArray[np.int64]] = {"valid": np.sort(valid), "test": np.sort(test)}
        rows["train"] = np.setdiff1d(np.arange(len(episodes)), order[: sum(held)])
        return {part: episodes.take(which) for part, which in rows.items()}

    def queries(self, episodes: Episodes) -> Sequence[slice]:
        """Return each user's query events: the same for every support size, never one of the support."""
        starts, ends = episodes.offsets[:-1] + self.support, episodes.offsets[1:]
        stops = np.minimum(ends, starts + self.max_queries)
        return [slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]

    def supports(self, episodes: Episodes, size: int) -> Iterator[slice]:
        """Yield each user's first ``size`` events."""
        for start, stop in zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True):
            yield slice(int(start), int(min(stop, start + min(size, self.support))))
