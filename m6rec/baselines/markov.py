"""Markov: counts of what followed what. It knows nothing beyond the last few items."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m6rec.baselines.sparse import SparseRows, popularity_prior, recent_events
from m6rec.data.histories import Histories, Queries


@dataclass(frozen=True)
class MarkovConfig:
    """Settings of :class:`Markov`; all change results."""

    window: int = 3
    """A pair counts when the second item comes at most this many events after the first, with weight 1 / distance."""
    last: int = 5
    """How many of the user's latest items are fed, with weight 1 / (1 + age); 1 = first order in the strict sense."""
    damping: float = 0.5
    """Each item's row is divided by its sum to this power: 0 = raw counts, 1 = transition probabilities."""
    popularity: float = 1e-6
    """Weight of the popularity prior, which orders the items that the counts say nothing about; 0 = ties at random."""


class Markov:
    """Scores an item by how often it followed the user's latest items.

    **Source:** Rendle, Freudenthaler and Schmidt-Thieme, Factorizing personalized Markov chains, 2010 (the counts
    before factorisation); Ludewig and Jannach, Evaluation of session-based recommendation algorithms, 2018 (SR:
    sequential rules with distance weights).
    **Differs:** the latest few items are fed instead of one, with weights that fall with age; unseen items are ordered
    by popularity.
    """

    name = "markov"
    Config = MarkovConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "window": (1, 3, 5, 10),
        "last": (1, 5, 10, 20),
        "damping": (0.0, 0.5, 1.0),
    }

    def __init__(self, config: MarkovConfig | None = None) -> None:
        self.config = config or MarkovConfig()

    def fit(self, train: Histories) -> None:
        """Count what followed what within the window."""
        places, events, _ = recent_events(train, np.arange(train.num_users), None)
        items = train.items[events]
        firsts, seconds, weights = [], [], []
        for distance in range(1, self.config.window + 1):
            same_user = places[distance:] == places[:-distance]
            firsts.append(items[:-distance][same_user])
            seconds.append(items[distance:][same_user])
            weights.append(np.full(same_user.sum(), 1 / distance))
        first, second, weight = map(np.concatenate, (firsts, seconds, weights))
        counts = SparseRows.sum_of(first, second, weight, (train.num_items, train.num_items))
        self._transitions = damp_rows(counts, self.config.damping)
        self._prior = popularity_prior(train, self.config.popularity)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]``: weighted sum of the latest items' rows, plus the prior."""
        places, events, ages = recent_events(queries.history, queries.users, self.config.last)
        items = queries.history.items[events]
        return self._transitions.mix(places, items, 1 / (1.0 + ages), len(queries)) + self._prior


def damp_rows(counts: SparseRows, power: float) -> SparseRows:
    """Return the rows, each divided by its sum to the given power."""
    row = np.repeat(np.arange(len(counts.offsets) - 1), np.diff(counts.offsets))
    sums = np.bincount(row, counts.weights, minlength=len(counts.offsets) - 1)
    weights = counts.weights / np.maximum(sums, 1e-12)[row] ** power
    return SparseRows(counts.offsets, counts.columns, weights.astype(np.float32), counts.num_columns)
