"""Directions of taste in closed form: what users that are learnt from disagree about, by alternating least squares.

The start of two-stage meta-learning, and a baseline by itself. Plain numpy. Knows no network and no split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

NOISE = 0.75
"""Variance of a judgement round what is known of user and item, in standard units: about what is left after fitting."""


@dataclass(frozen=True)
class Factors:
    """Items along shared directions; over all judgements each has variance one, and no two go together.

    Args:
        users: ``[num_users, dim]`` the learnt-from users' tastes.
        own: ``[num_items, dim]`` what judgements say of each item.
        counts: ``[num_items]`` judgements of each.
        text: ``[columns, dim]`` what features say of an item.
        features: ``[num_items, columns]``.
        turn: ``[dim, dim]`` to the directions that are said above.
        pull: ``[dim]`` how many judgements the prior (no taste in either way) weighs, along each direction.
        shrink: judgements that pull an item's own vector to zero.
        strength: judgements that pull an item towards what its features say.

    Source: probabilistic matrix factorisation (Salakhutdinov and Mnih, 2007) on what a closed form of levels leaves.
    """

    users: Numbers
    own: Numbers
    counts: Numbers
    text: Numbers
    features: Numbers
    turn: Numbers
    pull: Numbers
    shrink: float
    strength: float = 10.0

    @classmethod
    def fit(
        cls,
        rows: NDArray[np.integer],
        items: NDArray[np.integer],
        left: Numbers,
        num_users: int,
        features: Numbers,
        dim: int,
        seed: int,
        shrink: float = 20.0,
        rounds: int = 8,
    ) -> "Factors":
        """Fit users and items in turns.

        Args:
            rows: ``[events]`` user of each judgement.
            items: ``[events]``.
            left: ``[events]`` what the levels of user and item leave of it, in standard units.
            num_users: how many there are.
            features: ``[num_items, columns]``, of all items.
            dim: directions.
            seed: of the start.
            shrink: weight of an item's prior, in judgements.
            rounds: turns.
        """
        own = np.random.default_rng(seed).normal(0, 0.1, (len(features), dim))
        for _ in range(rounds):
            users = _solved(rows, own[items], left, num_users, NOISE)
            users /= np.maximum(np.sqrt((users**2).mean()), 1e-9)
            own = _solved(items, users[rows], left, len(features), shrink)
        counts = np.bincount(items, minlength=len(features)).astype(np.float64)
        trust = (counts / (cls.strength + counts))[:, None]
        gram = (features * trust).T @ features + 100.0 * np.eye(features.shape[1])
        text: Numbers = np.linalg.solve(gram, (features * trust).T @ own).astype(np.float64)
        vectors = trust * own + (1 - trust) * (features @ text)
        # Judgements, not items, are to be spread evenly: a step of the inner loop sees judgements.
        spread, axes = np.linalg.eigh(vectors[items].T @ vectors[items] / max(1, len(items)))
        spread = np.maximum(spread, 1e-6)
        return cls(users, own, counts, text, features, axes / np.sqrt(spread), NOISE / spread, shrink)

    def items(self) -> Numbers:
        """Return ``[num_items, dim]`` every item's vector; by its features where nobody judged it."""
        return self._turned(self.own, self.counts, self.features)

    def strangers(self) -> Numbers:
        """Return ``[columns, dim]``: features times this is the vector of an item that nobody judged."""
        turned: Numbers = self.text @ self.turn
        return turned

    def without_own(
        self,
        folds: Sequence[NDArray[np.bool_]],
        rows: NDArray[np.integer],
        items: NDArray[np.integer],
        left: Numbers,
    ) -> Numbers:
        """Return ``[events, dim]`` each judgement's item as users outside the judgement's own fold have it.

        Args:
            folds: ``[events]`` bool each; together they are all.
            rows: as in ``fit``.
            items: as in ``fit``.
            left: as in ``fit``.
        """
        found = np.empty((len(items), self.users.shape[1]))
        for inside in folds:
            others, asked = ~inside, items[inside]
            own = _solved(items[others], self.users[rows[others]], left[others], len(self.counts), self.shrink)
            counts = np.bincount(items[others], minlength=len(self.counts)).astype(np.float64)
            found[inside] = self._turned(own[asked], counts[asked], self.features[asked])
        return found

    def _turned(self, own: Numbers, counts: Numbers, features: Numbers) -> Numbers:
        trust = (counts / (self.strength + counts))[:, None]
        turned: Numbers = (trust * own + (1 - trust) * (features @ self.text)) @ self.turn
        return turned


def _solved(names: NDArray[np.integer], inputs: Numbers, targets: Numbers, size: int, strength: float) -> Numbers:
    """Return ``[size, dim]`` ridge solutions, one for each name."""
    dim = inputs.shape[1]
    gram, right = np.empty((size, dim, dim)), np.empty((size, dim))
    for row in range(dim):
        right[:, row] = np.bincount(names, inputs[:, row] * targets, minlength=size)
        for column in range(row + 1):
            products = np.bincount(names, inputs[:, row] * inputs[:, column], minlength=size)
            gram[:, row, column] = gram[:, column, row] = products
    solved: Numbers = np.linalg.solve(gram + strength * np.eye(dim), right[..., None])[..., 0].astype(np.float64)
    return solved
