"""What needs no training: means, shrunk levels of users and items, and a ridge from an item's attributes to its level.

The rows that every cold-start table has to show, for ratings and for click labels (0 and 1) alike. Plain numpy on
columns of judgements. Knows no split, no model and no text.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Strengths:
    """How many judgements pull a level towards what is expected without any; all change results."""

    user: float = 5.0
    """A user's level, towards zero."""
    item: float = 5.0
    """An item's level, towards what its attributes say."""
    ridge: float = 5.0
    """Each attribute's weight, towards zero; in items of which nearly everything is known."""


@dataclass(frozen=True)
class ClosedForm:
    """Value = mean + level of the user + level of the item.

    Args:
        mean: of the judgements that were learnt from.
        user_sums: ``[num_users]`` sum of what mean and items leave of each user's judgements.
        user_counts: ``[num_users]`` number of them.
        weights: ``[columns]`` what an attribute says of an item's level.
        strengths: see there.

    Source: Koren, Factorization meets the neighborhood, 2008, equation 1 (mean and biases), shrunk as there; the prior
        is a weighted ridge regression on attributes.
    """

    mean: float
    user_sums: Numbers
    user_counts: Numbers
    weights: Numbers
    strengths: Strengths

    @classmethod
    def fit(
        cls,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        values: NDArray[np.floating],
        num_users: int,
        attributes: NDArray[np.floating],
        strengths: Strengths | None = None,
        rounds: int = 8,
    ) -> "ClosedForm":
        """Fit users and items in turns, each to what the other leaves; then what attributes say of items.

        Args:
            users: ``[rows]``.
            items: ``[rows]``.
            values: ``[rows]`` ratings or labels.
            num_users: how many there are.
            attributes: ``[num_items, columns]``, of all items; a row of zeros = nothing is known.
            strengths: of the priors.
            rounds: turns; a handful settles it.
        """
        strengths = strengths or Strengths()
        mean = float(values.mean()) if len(values) else 0.0
        left, num_items = values.astype(np.float64) - mean, len(attributes)
        counts = np.bincount(users, minlength=num_users).astype(np.float64)
        item_counts = np.bincount(items, minlength=num_items).astype(np.float64)
        sums: Numbers = np.zeros(num_users)
        levels: Numbers = np.zeros(num_items)
        for _ in range(rounds):
            sums = _sums(users, left - levels[items], num_users)
            own = left - (sums / (strengths.user + counts))[users]
            levels = _sums(items, own, num_items) / (strengths.item + item_counts)
        # An item's mean is as sure as it has judgements, up to what items of equal attributes differ by.
        trust, table = item_counts / (strengths.item + item_counts), attributes.astype(np.float64)
        gram = (table * trust[:, None]).T @ table + strengths.ridge * np.eye(table.shape[1])
        # `levels` is shrunk, which is the mean times the trust.
        return cls(mean, sums, counts, np.asarray(np.linalg.solve(gram, table.T @ levels), np.float64), strengths)

    def user_levels(self) -> Numbers:
        """Return ``[num_users]`` each user's shrunk level; 0 of a user who was never met."""
        return self.user_sums / (self.strengths.user + self.user_counts)

    def user_levels_without(self, users: NDArray[np.integer], left: NDArray[np.floating]) -> Numbers:
        """Return ``[rows]`` the users' levels without one judgement each, which they were learnt from.

        Args:
            users: ``[rows]``.
            left: ``[rows]`` what mean and the item leave of the judgement.
        """
        return (self.user_sums[users] - left) / (self.strengths.user + np.maximum(self.user_counts[users] - 1, 0))

    def priors(self, attributes: NDArray[np.floating]) -> Numbers:
        """Return ``[items]`` what attributes say of items' levels."""
        result: Numbers = attributes.astype(np.float64) @ self.weights
        return result

    def item_levels(
        self,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        values: NDArray[np.floating],
        priors: Numbers,
    ) -> Numbers:
        """Return ``[num_items]`` levels from priors and a few judgements; without any it is the prior.

        Args:
            users: ``[rows]`` of the judgements that are known.
            items: ``[rows]``.
            values: ``[rows]``.
            priors: ``[num_items]``.
        """
        left = values.astype(np.float64) - self.mean - self.user_levels()[users]
        sums = _sums(items, left, len(priors))
        counts = np.bincount(items, minlength=len(priors))
        return (sums + self.strengths.item * priors) / (self.strengths.item + counts)

    def scores(self, users: NDArray[np.integer], items: NDArray[np.integer], item_levels: Numbers) -> Numbers:
        """Return ``[rows]`` expected values."""
        return self.mean + self.user_levels()[users] + item_levels[items]


def _sums(names: NDArray[np.integer], values: Numbers, size: int) -> Numbers:
    return np.bincount(names, weights=values, minlength=size).astype(np.float64)
