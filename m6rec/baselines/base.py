"""What a recommender is to the evaluation: something that scores the whole catalogue for a batch of users.

Baselines and trained runs alike. This module knows no method.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Histories, Judgements, Queries


@runtime_checkable
class Recommender(Protocol):
    """Scores every item for every query; higher is better.

    Attributes:
        name: row name in reports.
    """

    name: str

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` scores from ``queries.history`` alone (never from its targets)."""
        ...


@runtime_checkable
class Baseline(Recommender, Protocol):
    """A recommender that learns from the training events and nothing else."""

    Config: type

    def fit(self, train: Histories) -> None:
        """Learn from ``train`` (training events only; the caller has cut the rest away)."""
        ...


@runtime_checkable
class PairScorer(Protocol):
    """Scores labelled pairs; a score is the probability of a yes.

    Attributes:
        name: row name in reports.
    """

    name: str

    def score_pairs(self, pairs: Judgements) -> NDArray[np.float32]:
        """Return ``[num_pairs]`` probabilities from what each pair may see (never from its label)."""
        ...


@runtime_checkable
class PairBaseline(PairScorer, Protocol):
    """A pair scorer that learns from training judgements (and, for early stopping, validation ones)."""

    Config: type

    def fit_pairs(self, train: Judgements, valid: Judgements | None = None) -> None:
        """Learn from ``train``; ``valid`` only stops the training, and is logged when it does."""
        ...
