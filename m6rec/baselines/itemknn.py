"""Item-kNN: items that the same people had. It knows nothing of order but which events are recent."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m6rec.baselines.sparse import SparseRows, popularity_prior, recent_events
from m6rec.data.histories import Histories, Queries

#: Counters held at once while co-occurrences are counted: 64 MB of float64.
COUNTERS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class ItemKNNConfig:
    """Settings of :class:`ItemKNN`; all change results."""

    last: int | None = 5
    """How many of the user's latest items are fed; empty (null) = the whole history."""
    num_neighbours: int = 500
    """How many similar items each item keeps."""
    shrinkage: float = 0.0
    """Added to the denominator of the cosine, so that similarities resting on few users count less."""
    max_history: int = 1000
    """Latest events of a user that count for similarities (work grows with its square)."""
    popularity: float = 1e-6
    """Weight of the popularity prior, which orders the items that no neighbour reaches; 0 = ties at random."""


class ItemKNN:
    """Scores an item by its cosine similarity to the user's items, summed.

    Two items are similar when the same users had both: ``|U(i) and U(j)| / (sqrt(|U(i)| |U(j)|) + shrinkage)``.

    **Source:** Sarwar et al., Item-based collaborative filtering recommendation algorithms, 2001; Deshpande and
    Karypis, Item-based top-n recommendation algorithms, 2004.
    **Differs:** by default only the last 5 items are fed, which beats the whole history on every sequential split we
    tried (``last=null`` gives the textbook's).
    """

    name = "itemknn"
    Config = ItemKNNConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "last": (1, 3, 5, 10, None),
        "num_neighbours": (50, 200, 500, 1000),
        "shrinkage": (0.0, 1.0, 5.0, 20.0),
    }

    def __init__(self, config: ItemKNNConfig | None = None) -> None:
        self.config = config or ItemKNNConfig()

    def fit(self, train: Histories) -> None:
        """Find every item's neighbours."""
        places, events, _ = recent_events(train, np.arange(train.num_users), self.config.max_history)
        pairs = np.unique(places * train.num_items + train.items[events])
        users, items = np.divmod(pairs, train.num_items)
        norms = np.sqrt(np.bincount(items, minlength=train.num_items))
        parts = []
        for rows, columns, together in _co_occurrences(users, items, train.num_users, train.num_items):
            cosines = together / (norms[rows] * norms[columns] + self.config.shrinkage)
            order = np.lexsort((-cosines, rows))
            place = np.arange(len(rows)) - np.searchsorted(rows, rows)
            keep = order[place < self.config.num_neighbours]
            parts.append((rows[keep], columns[keep], cosines[keep]))
        rows, columns, cosines = map(np.concatenate, zip(*parts, strict=True))
        self._neighbours = SparseRows.sum_of(rows, columns, cosines, (train.num_items, train.num_items))
        self._prior = popularity_prior(train, self.config.popularity)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]``: summed similarities to the fed items, plus the prior."""
        places, events, _ = recent_events(queries.history, queries.users, self.config.last)
        items = queries.history.items[events]
        return self._neighbours.mix(places, items, np.ones(len(items)), len(queries)) + self._prior


def _co_occurrences(
    users: NDArray[np.int64], items: NDArray[np.int64], num_users: int, num_items: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (item, other item, users who had both) for a block of items at a time, ordered by item.

    Args:
        users: ``[m]`` ascending.
        items: ``[m]``, each once per user.
        num_users: number of users.
        num_items: number of items.
    """
    starts = np.searchsorted(users, np.arange(num_users + 1))
    by_item = np.argsort(items, kind="stable")
    edges = np.searchsorted(items[by_item], np.arange(num_items + 1))
    block = max(1, COUNTERS_AT_ONCE // num_items)
    for start in range(0, num_items, block):
        end = min(start + block, num_items)
        owned = by_item[edges[start] : edges[end]]
        counts = np.diff(starts)[users[owned]]
        others = np.arange(counts.sum()) + np.repeat(starts[users[owned]] - np.cumsum(counts) + counts, counts)
        flat = np.repeat(items[owned] - start, counts) * num_items + items[others]
        together = np.bincount(flat, minlength=(end - start) * num_items)
        pairs = np.flatnonzero(together)
        pairs = pairs[pairs // num_items + start != pairs % num_items]
        yield pairs // num_items + start, pairs % num_items, together[pairs]
