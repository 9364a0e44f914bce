"""What an evaluation leaves behind: ranks and lists per query, probabilities per pair.

Means, slices and resamples are made from these without running a model again. It knows no recommender and no screen.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError
from m6rec.metrics.beyond import coverage, novelty
from m6rec.metrics.calibration import bin_numbers, log_losses
from m6rec.metrics.ranking import RANKING_METRICS, auc_of_levels, query_of, ranking_metric, user_aucs


class Result(Protocol):
    """What bootstraps, comparisons and reports need of an evaluation."""

    @property
    def name(self) -> str:
        """Row name in reports."""
        ...

    @property
    def protocol(self) -> dict[str, Any]:
        """Plain values that say how it was measured."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        ...

    def means(self) -> dict[str, float]:
        """Return every metric."""
        ...

    def groups(self) -> NDArray[np.int32]:
        """Return the distinct users, sorted: what a bootstrap draws from."""
        ...

    def estimate(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """Return every metric with each of ``groups()`` counted ``weights`` times."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What one recommender did on one set of queries.

    Args:
        name: the recommender's.
        users: ``[num_queries]`` user of each query.
        offsets: ``[num_queries + 1]``; query ``q`` owns targets ``offsets[q]:offsets[q + 1]``.
        targets: ``[num_targets]`` held-out items, distinct within a query.
        ranks: ``[num_targets]`` 1-based rank of each; ``NOT_FOUND`` where the target was not ranked.
        lists: ``[num_queries, length]`` int32 the recommended items, best first, ``-1`` = none.
        history_lengths: ``[num_queries]`` events with an item that the recommender could see.
        item_counts: ``[num_items]`` training events of each item.
        cutoffs: of the metrics.
        suffix: of the metrics' names: empty for the full catalogue, else ``"[sampled=100]"``.
        protocol: plain values that say how it was measured.
        seconds: wall time of the scoring.
    """

    name: str
    users: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    ranks: NDArray[np.int64]
    lists: NDArray[np.int32]
    history_lengths: NDArray[np.int64]
    item_counts: NDArray[np.int64]
    cutoffs: tuple[int, ...] = (5, 10, 20)
    suffix: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.users)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the ranking metrics, e.g. ``ndcg@10`` or ``ndcg@10[sampled=100]``."""
        return tuple(f"{family}@{cutoff}{self.suffix}" for family in RANKING_METRICS for cutoff in self.cutoffs)

    def per_query(self, metric: str) -> NDArray[np.float64]:
        """Return ``[num_queries]`` values of ``metric`` (with or without this evaluation's suffix).

        Raises:
            DataError: the metric was made with other candidates.
        """
        plain = metric.removesuffix(self.suffix) if self.suffix else metric
        if "[" in plain:
            raise DataError(f"got metric {metric!r}, expected one of {', '.join(self.metrics)}")
        return ranking_metric(plain, self.ranks, self.offsets)

    def means(self) -> dict[str, float]:
        """Return every ranking metric's mean over queries (NaN without queries)."""
        return {name: float(self.per_query(name).mean()) if len(self) else float("nan") for name in self.metrics}

    def beyond(self) -> dict[str, float]:
        """Return coverage and novelty of the lists at every cutoff."""
        values = {}
        for cutoff in self.cutoffs:
            shown = self.lists[:, :cutoff]
            values[f"coverage@{cutoff}{self.suffix}"] = coverage(shown, len(self.item_counts))
            values[f"novelty@{cutoff}{self.suffix}"] = novelty(shown, self.item_counts)
        return values

    def groups(self) -> NDArray[np.int32]:
        """Return the distinct users, sorted: what a bootstrap draws from."""
        return np.unique(self.users)

    def estimate(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """Return every ranking metric with each of ``groups()`` counted ``weights`` times."""
        sums, counts = self._by_group
        means = weights @ sums / (weights @ counts)
        return dict(zip(self.metrics, means.tolist(), strict=True))

    @cached_property
    def _by_group(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``[num_groups, num_metrics]`` sums over each user's queries; ``[num_groups]`` their number."""
        owner = np.searchsorted(self.groups(), self.users)
        counts = np.bincount(owner).astype(np.float64)
        return np.stack([np.bincount(owner, self.per_query(metric)) for metric in self.metrics], axis=1), counts

    def where(self, keep: NDArray[np.bool_]) -> "Evaluation":
        """Return the evaluation of some targets only; queries left without a target are dropped.

        Args:
            keep: ``[num_targets]`` bool. Ranks stay as they were: other targets still take their places in the list.
        """
        query = query_of(self.offsets)[keep]
        counts = np.bincount(query, minlength=len(self))
        left = counts > 0
        return replace(
            self,
            users=self.users[left],
            offsets=np.r_[0, np.cumsum(counts[left])].astype(np.int64),
            targets=self.targets[keep],
            ranks=self.ranks[keep],
            lists=self.lists[left],
            history_lengths=self.history_lengths[left],
        )


@dataclass(frozen=True)
class PairEvaluation:
    """What one pair scorer did on labelled pairs.

    Args:
        name: the scorer's.
        users: ``[num_pairs]`` user of each pair.
        labels: ``[num_pairs]`` 0 or 1.
        probabilities: ``[num_pairs]`` of a yes.
        protocol: plain values that say how it was measured.
        num_bins: bins of equal width in the calibration error.
        seconds: wall time of the scoring.
    """

    name: str
    users: NDArray[np.int32]
    labels: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    protocol: dict[str, Any] = field(default_factory=dict)
    num_bins: int = 15
    seconds: float = 0.0

    metrics = ("auc", "uauc", "log_loss", "ece", "brier")

    def __len__(self) -> int:
        return len(self.users)

    def means(self) -> dict[str, float]:
        """Return every metric; AUC is NaN where one class is missing."""
        return self.estimate(np.ones(len(self.groups())))

    def groups(self) -> NDArray[np.int32]:
        """Return the distinct users, sorted: what a bootstrap draws from."""
        return np.unique(self.users)

    def estimate(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """Return every metric with each of ``groups()`` counted ``weights`` times."""
        parts = self._parts
        pair_weights = weights[parts.owner]
        total, ranked = pair_weights.sum(), weights[parts.ranked_users]
        gaps = np.bincount(parts.bins, pair_weights * parts.gaps, minlength=self.num_bins)
        return {
            "auc": auc_of_levels(parts.levels, parts.labels, pair_weights),
            "uauc": float(ranked @ parts.user_aucs / ranked.sum()) if ranked.sum() else float("nan"),
            "log_loss": float(pair_weights @ parts.log_losses / total),
            "ece": float(np.abs(gaps).sum() / total),
            "brier": float(pair_weights @ parts.gaps**2 / total),
        }

    def where(self, keep: NDArray[np.bool_]) -> "PairEvaluation":
        """Return the evaluation of some pairs only (``[num_pairs]`` bool)."""
        picked = {name: getattr(self, name)[keep] for name in ("users", "labels", "probabilities")}
        return replace(self, **picked)

    @cached_property
    def _parts(self) -> "_PairParts":
        who, aucs = user_aucs(self.users, self.labels, self.probabilities)
        return _PairParts(
            owner=np.searchsorted(self.groups(), self.users),
            labels=self.labels.astype(np.float64),
            levels=np.unique(self.probabilities, return_inverse=True)[1],
            bins=bin_numbers(self.probabilities, self.num_bins),
            gaps=self.probabilities.astype(np.float64) - self.labels,
            log_losses=log_losses(self.labels, self.probabilities),
            ranked_users=np.searchsorted(self.groups(), who),
            user_aucs=aucs,
        )


@dataclass(frozen=True)
class _PairParts:
    """What every resample of the same pairs shares."""

    owner: NDArray[np.int64]
    labels: NDArray[np.float64]
    levels: NDArray[np.int64]
    bins: NDArray[np.int64]
    gaps: NDArray[np.float64]
    log_losses: NDArray[np.float64]
    ranked_users: NDArray[np.int64]
    user_aucs: NDArray[np.float64]
