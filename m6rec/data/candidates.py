"""Which items a query is ranked against. The full catalogue is the default and needs nothing from here (``None``).

This module knows queries; it knows no model and no metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Queries
from m6rec.errors import DataError


@runtime_checkable
class Candidates(Protocol):
    """Gives each query the items that compete with its targets."""

    @property
    def name(self) -> str:
        """What stands in a metric's name, as in ``ndcg@10[sampled=100]``."""
        ...

    def of(self, queries: Queries) -> NDArray[np.int32]:
        """Return ``[num_queries, n]`` item ids, ``-1`` where a query has fewer; a sample holds no target."""
        ...


@dataclass(frozen=True)
class SampledCandidates:
    """Uniformly sampled items that the user has neither seen nor is asked for.

    A user's sample comes from the user's own generator, so neither the order of queries nor the way they are spread
    over processes changes it.

    Args:
        num: items a query.
        seed: seed of all samples.
    """

    num: int = 100
    seed: int = 0

    @property
    def name(self) -> str:
        """``sampled=`` and the number."""
        return f"sampled={self.num}"

    def of(self, queries: Queries) -> NDArray[np.int32]:
        """Return ``[num_queries, num]`` item ids, all different within a query.

        Raises:
            DataError: a user has fewer unseen items than that.
        """
        samples = [self._sample(queries, query) for query in range(len(queries))]
        return np.array(samples, dtype=np.int32).reshape(len(queries), self.num)

    def _sample(self, queries: Queries, query: int) -> NDArray[np.int32]:
        user = int(queries.users[query])
        history = queries.history
        excluded = np.union1d(history.items[history.of(user)], queries.targets_of(query))
        excluded = excluded[excluded >= 0]
        left = history.num_items - len(excluded)
        if left < self.num:
            raise DataError(
                f"got num={self.num} sampled candidates, but user {user} has only {left} unseen items of "
                f"{history.num_items}; ask for fewer, or rank the full catalogue"
            )
        places = np.random.default_rng([self.seed, user]).choice(left, self.num, replace=False)
        # Place p among the items that are left is item p plus the excluded ones at or below it.
        shifted = excluded - np.arange(len(excluded))
        return (places + np.searchsorted(shifted, places, side="right")).astype(np.int32)


@dataclass(frozen=True)
class GivenCandidates:
    """Lists made elsewhere, e.g. by a first stage or published with a data set.

    Args:
        lists: user id -> item ids.
        name: what stands in a metric's name.
    """

    lists: Mapping[int, Sequence[int]]
    name: str = "given"

    def of(self, queries: Queries) -> NDArray[np.int32]:
        """Return ``[num_queries, longest list]`` item ids, the list of each query's user padded with ``-1``.

        Raises:
            DataError: a user has no list, or one that holds an item the catalogue does not have.
        """
        lists = [self._list(int(user), queries.history.num_items) for user in queries.users]
        padded = np.full((len(lists), max(map(len, lists), default=0)), -1, dtype=np.int32)
        for row, items in zip(padded, lists, strict=True):
            row[: len(items)] = items
        return padded

    def _list(self, user: int, num_items: int) -> NDArray[np.int32]:
        if user not in self.lists:
            raise DataError(f"user {user} has no list of candidates; expected one for every user with held-out events")
        items = np.asarray(self.lists[user], dtype=np.int32)
        if len(items) and not (items.min() >= 0 and items.max() < num_items):
            raise DataError(f"the candidates of user {user} hold an item outside 0 to {num_items - 1}")
        return items
