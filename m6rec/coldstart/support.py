"""How good predictions are after so many known events of a user who was never seen: pooled, and within the user.

Pooled AUC rises with whatever tells one user's level from another's; only figures within a user say that her taste is
known. Knows no predictor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.coldstart.episodes import Episodes, Protocol
from m6rec.errors import DataError
from m6rec.metrics.ranking import auc, ndcg, uauc

Predict = Callable[[int], NDArray[np.floating]]
"""Support size -> a score for every query event, in the order of the users."""

METRICS = ("auc", "within_user_auc", "ndcg@10", "mse", "mae")


@dataclass(frozen=True)
class Questions:
    """The query events of some users, the same at every support size.

    Args:
        users: ``[num_queries]`` row of each one's user.
        items: ``[num_queries]`` item ids.
        values: ``[num_queries]`` ratings, or labels again.
        labels: ``[num_queries]`` 0 or 1.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]

    @classmethod
    def of(cls, episodes: Episodes, protocol: Protocol) -> "Questions":
        """Return what is asked of ``episodes``.

        Raises:
            DataError: no user has an event behind the support.
        """
        parts = protocol.queries(episodes)
        numbers = np.concatenate([np.arange(part.start, part.stop) for part in parts] or [np.zeros(0, np.int64)])
        if not len(numbers):
            raise DataError("got no user with an event behind the support, expected one at least")
        return cls(episodes.rows[numbers], episodes.items[numbers], episodes.values[numbers], episodes.labels[numbers])

    def judge(self, scores: NDArray[np.floating], seed: int = 0) -> dict[str, float]:
        """Return every metric of scores; NaN where it is not defined (all labels are equal).

        Args:
            scores: ``[num_queries]``, in the units of ``values`` where MSE and MAE are to mean anything.
            seed: of the order of equal scores in NDCG.
        """
        missed = scores.astype(np.float64) - self.values
        return {
            "auc": auc(self.labels, scores),
            "within_user_auc": uauc(self.users, self.labels, scores),
            "ndcg@10": self._ndcg(scores, seed),
            "mse": float((missed**2).mean()),
            "mae": float(np.abs(missed).mean()),
        }

    def _ndcg(self, scores: NDArray[np.floating], seed: int) -> float:
        """Return the mean over users with a yes of the NDCG@10 of their query items in the order of their scores."""
        luck = np.random.default_rng(seed).random(len(scores))
        order = np.lexsort((luck, -scores, self.users))
        starts = np.searchsorted(self.users[order], self.users[order])
        ranks = np.arange(len(scores)) - starts + 1
        found = self.labels[order] > 0
        if not found.any():
            return float("nan")
        _, counts = np.unique(self.users[order][found], return_counts=True)
        return float(ndcg(ranks[found], np.r_[0, np.cumsum(counts)].astype(np.int64), 10).mean())


def curve(predict: Predict, episodes: Episodes, protocol: Protocol, seed: int = 0) -> dict[int, dict[str, float]]:
    """Return every metric at every support size."""
    questions = Questions.of(episodes, protocol)
    return {size: questions.judge(predict(size), seed) for size in protocol.sizes()}


def named(found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return a curve as figures by name, and each metric's mean over the sizes.

    >>> named({0: {"mse": 1.0}, 5: {"mse": 0.5}})
    {'mse': 0.75, 'mse[support=0]': 1.0, 'mse[support=5]': 0.5}
    """
    metrics = list(next(iter(found.values())))
    means = {metric: float(np.mean([row[metric] for row in found.values()])) for metric in metrics}
    return means | {f"{metric}[support={size}]": row[metric] for metric in metrics for size, row in found.items()}
