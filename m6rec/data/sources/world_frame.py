"""The sample world's frame: its two years, its two domains, its kinds of item, and drawing by weights."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

START, END = 1_672_531_200, 1_735_689_600
"""The world's two years in Unix seconds: 2023 and 2024."""
DAY = 86_400
SHOP, VIDEO = 0, 1
TOOL, EXTRA, SUPPLY, SINGLE, SERIES = range(5)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Return one of ``choices`` (``Generator.choice`` is twenty times slower on short lists)."""
    return choices[int(rng.random() * len(choices))]


def draw(rng: np.random.Generator, weights: NDArray[np.floating]) -> NDArray[np.int64]:
    """Draw one column index a row, in proportion to ``weights`` (``[M, C]``, no row all zero)."""
    return draw_many(rng, weights, 1)[:, 0]


def draw_many(rng: np.random.Generator, weights: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Draw ``count`` column indices a row, independently and in proportion to ``weights``; ``[M, count]``."""
    ends = weights.cumsum(axis=1, dtype=np.float64)
    points = rng.random((len(weights), count)) * ends[:, -1:]
    return np.stack([np.count_nonzero(ends <= points[:, [n]], axis=1) for n in range(count)], axis=1)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax over the last axis."""
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def shares(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return rows that sum to one; an all-zero row stays zero.

    >>> shares(np.array([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    total = weights.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.divide(weights, total, out=np.zeros(weights.shape), where=total > 0)
