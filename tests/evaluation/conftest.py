"""A small log with every kind of user, and recommenders whose scores are known."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from m6rec.data.histories import Histories, Queries


@dataclass
class Fixed:
    """Scores by a function of (user, item), so that batching cannot matter."""

    scores: NDArray[np.float32]
    name: str = "fixed"

    def score(self, queries: Queries) -> NDArray[np.float32]:
        return self.scores[queries.users]


def random_log(num_users: int = 40, num_items: int = 30, seed: int = 0) -> Histories:
    """Return histories of 2 to 12 distinct items; the last is test, the one before it valid (also for new users)."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 13, num_users)
    items = np.concatenate([rng.choice(num_items, count, replace=False) for count in counts]).astype(np.int32)
    offsets = np.r_[0, np.cumsum(counts)].astype(np.int64)
    splits = np.zeros(len(items), np.int8)
    splits[offsets[1:] - 1], splits[offsets[1:] - 2] = 2, 1
    return Histories(offsets, items, splits, num_items)


@pytest.fixture
def log() -> Histories:
    return random_log()


@pytest.fixture
def fixed(log: Histories) -> Callable[..., Fixed]:
    def make(seed: int = 0, levels: int = 1000, name: str = "fixed") -> Fixed:
        rng = np.random.default_rng(seed)
        return Fixed(rng.integers(levels, size=(log.num_users, log.num_items)).astype(np.float32), name)

    return make
