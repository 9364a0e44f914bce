"""ALS: factors of users and items for implicit feedback, by the `implicit` library. It knows nothing of order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m6rec.baselines.sparse import popularity_prior, recent_events
from m6rec.data.histories import Histories, Queries
from m6rec.errors import needs


@dataclass(frozen=True)
class ALSConfig:
    """Settings of :class:`ALS`; all change results."""

    factors: int = 64
    """Size of user and item vectors."""
    regularization: float = 0.05
    """L2 penalty on the vectors."""
    alpha: float = 10.0
    """Confidence of an event; one that was not seen has confidence 1."""
    iterations: int = 15
    """Alternations."""
    seed: int = 0
    """Of the first vectors."""


class ALS:
    """Implicit-feedback matrix factorisation by alternating least squares.

    The vector of a user is solved anew from the history of each query, so that events after training count and users
    unknown in training are served; one without history gets the popular items.

    **Source:** Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets, 2008.
    """

    name = "als"
    Config = ALSConfig
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "factors": (32, 64, 128, 256),
        "regularization": (0.01, 0.05, 0.2),
        "alpha": (1.0, 5.0, 10.0, 40.0),
    }

    def __init__(self, config: ALSConfig | None = None) -> None:
        self.config = config or ALSConfig()
        with needs("bench"):
            import implicit  # noqa: F401

    def fit(self, train: Histories) -> None:
        """Factorise the user-item matrix."""
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # BLAS threads inside implicit's own make it many times slower; it warns about them.
        with threadpool_limits(1, "blas"):
            self._model = AlternatingLeastSquares(
                factors=self.config.factors,
                regularization=self.config.regularization,
                alpha=self.config.alpha,
                iterations=self.config.iterations,
                random_state=self.config.seed,
            )
            self._model.fit(_matrix(train, np.arange(train.num_users)), show_progress=False)
        self._prior = popularity_prior(train, 1.0)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` inner products; popularity where the history is empty."""
        from threadpoolctl import threadpool_limits

        matrix = _matrix(queries.history, queries.users)
        with threadpool_limits(1, "blas"):
            users = self._model.recalculate_user(np.arange(len(queries)), matrix)
            scores: NDArray[np.float32] = np.asarray(users @ self._model.item_factors.T, dtype=np.float32)
        scores[np.diff(matrix.indptr) == 0] = self._prior
        return scores


def _matrix(history: Histories, users: NDArray[np.integer]) -> Any:
    """Return ``[n, num_items]`` ones where a user had an item, as the scipy matrix that `implicit` takes."""
    from scipy.sparse import csr_matrix

    places, events, _ = recent_events(history, users, None)
    pairs = np.unique(places * history.num_items + history.items[events])
    rows, columns = np.divmod(pairs, history.num_items)
    shape = (len(users), history.num_items)
    return csr_matrix((np.ones(len(pairs), np.float32), (rows, columns)), shape=shape)
