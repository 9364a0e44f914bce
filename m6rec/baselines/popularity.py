"""Popularity: the same list for everybody. It knows nothing of the user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m6rec.baselines.sparse import item_counts
from m6rec.data.histories import Histories, Queries


@dataclass(frozen=True)
class PopularityConfig:
    """Popularity has no settings."""


class Popularity:
    """Ranks items by their number of training events.

    **Source:** Cremonesi et al., Performance of recommender algorithms on top-n recommendation tasks, 2010 (TopPop).
    """

    name = "popularity"
    Config = PopularityConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def __init__(self, config: PopularityConfig | None = None) -> None:
        self.config = config or PopularityConfig()

    def fit(self, train: Histories) -> None:
        """Count the training events of each item."""
        self._scores = item_counts(train).astype(np.float32)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` the counts, once per query."""
        return np.broadcast_to(self._scores, (len(queries), len(self._scores)))
