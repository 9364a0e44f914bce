"""Ranking metrics from the ranks of the targets: recall, hit rate, NDCG, MRR; AUC per log and per user.

Plain numpy, usable alone on anyone's lists. It knows no model, no catalogue and no tie rule: whoever makes the ranks
breaks the ties (``m6rec.evaluation`` does so by a seeded random key).

Targets are given in compressed rows: query ``q`` owns ``offsets[q]:offsets[q + 1]`` of a flat array. A rank is 1-based;
:data:`NOT_FOUND` stands for a target that is not in the list at all.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
Offsets = NDArray[np.int64]
NOT_FOUND = np.iinfo(np.int64).max


def find_ranks(lists: NDArray[Any], targets: NDArray[Any], offsets: Offsets) -> Ranks:
    """Return each target's 1-based place in its query's list.

    Args:
        lists: ``[num_queries, length]`` item ids, best first; pad short lists with ``-1``.
        targets: ``[num_targets]`` item ids, distinct within a query.
        offsets: ``[num_queries + 1]``.

    Returns:
        ``[num_targets]`` int64; :data:`NOT_FOUND` where the list lacks the target.

    >>> find_ranks(np.array([[7, 3, 5], [1, 2, -1]]), np.array([5, 9, 1]), np.array([0, 2, 3])).tolist()[::2]
    [3, 1]
    """
    found = lists[query_of(offsets)] == targets[:, None]
    return np.where(found.any(1), found.argmax(1) + 1, NOT_FOUND)


def query_of(offsets: Offsets) -> NDArray[np.int64]:
    """Return ``[num_targets]`` the query that owns each target."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def recall(ranks: Ranks, offsets: Offsets, cutoff: int) -> NDArray[np.float64]:
    """Return per query the share of its targets among the first ``cutoff``.

    >>> recall(np.array([3, 12]), np.array([0, 2]), 10).tolist()
    [0.5]
    """
    return _per_query(ranks <= cutoff, offsets) / np.diff(offsets)


def hit_rate(ranks: Ranks, offsets: Offsets, cutoff: int) -> NDArray[np.float64]:
    """Return per query 1.0 where any target is among the first ``cutoff``, else 0.0."""
    return (_per_query(ranks <= cutoff, offsets) > 0).astype(np.float64)


def ndcg(ranks: Ranks, offsets: Offsets, cutoff: int) -> NDArray[np.float64]:
    """Return per query the discounted gain of the first ``cutoff`` over that of the best possible list.

    Gain 1 per target, discount ``log2(rank + 1)``; the best list has ``min(cutoff, number of targets)`` targets first.

    **Source:** Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002.

    >>> ndcg(np.array([1, 3]), np.array([0, 1, 2]), 10).tolist()
    [1.0, 0.5]
    """
    discount = 1 / np.log2(np.arange(2, cutoff + 2))
    gains = np.where(ranks <= cutoff, discount[np.minimum(ranks, cutoff) - 1], 0.0)
    ideal = np.cumsum(discount)[np.minimum(np.diff(offsets), cutoff) - 1]
    return _per_query(gains, offsets) / ideal


def mrr(ranks: Ranks, offsets: Offsets, cutoff: int) -> NDArray[np.float64]:
    """Return per query one over the rank of its first target, 0 beyond ``cutoff``."""
    best = np.minimum.reduceat(ranks, offsets[:-1]) if len(ranks) else np.empty(0, np.int64)
    return np.where(best <= cutoff, 1 / best, 0.0)


def _per_query(values: NDArray[Any], offsets: Offsets) -> NDArray[np.float64]:
    if (np.diff(offsets) < 1).any():
        raise ValueError("got a query without a target, expected at least one each; leave such queries out")
    return np.add.reduceat(values.astype(np.float64), offsets[:-1]) if len(values) else np.empty(0)


#: Metric family -> function of (ranks, offsets, cutoff); ``name@cutoff`` is the full name.
RANKING_METRICS: Mapping[str, Callable[[Ranks, Offsets, int], NDArray[np.float64]]] = {
    "ndcg": ndcg,
    "recall": recall,
    "hr": hit_rate,
    "mrr": mrr,
}


def ranking_metric(name: str, ranks: Ranks, offsets: Offsets) -> NDArray[np.float64]:
    """Return per query the metric called ``name``, e.g. ``"ndcg@10"``.

    >>> ranking_metric("mrr@10", np.array([2]), np.array([0, 1])).tolist()
    [0.5]

    Raises:
        ValueError: no such metric.
    """
    family, _, cutoff = name.partition("@")
    if family not in RANKING_METRICS or not cutoff.isdigit() or int(cutoff) < 1:
        raise ValueError(
            f"got metric {name!r}, expected one of {', '.join(RANKING_METRICS)} with @cutoff, e.g. ndcg@10"
        )
    return RANKING_METRICS[family](ranks, offsets, int(cutoff))


def auc(labels: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any] | None = None) -> float:
    """Return the chance that a positive outscores a negative; ties count one half.

    Args:
        labels: ``[num_pairs]`` 0 or 1.
        scores: ``[num_pairs]``.
        weights: ``[num_pairs]`` optional multiplicities (a bootstrap resample is one).

    Returns:
        AUC, or NaN where one class is missing.

    >>> auc(np.array([1, 0, 1, 0]), np.array([0.9, 0.9, 0.8, 0.1]))
    0.625
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    _, level = np.unique(scores, return_inverse=True)
    return auc_of_levels(level, np.asarray(labels, np.float64), weights)


def auc_of_levels(level: NDArray[Any], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the AUC where scores are given as dense levels 0, 1, ... (sorted once, resampled often)."""
    positives = np.bincount(level, weights * labels)
    negatives = np.bincount(level, weights * (1 - labels))
    below = np.cumsum(negatives) - negatives
    total = positives.sum() * negatives.sum()
    return float((positives * (below + negatives / 2)).sum() / total) if total > 0 else float("nan")


def user_aucs(
    users: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the users with both classes and each one's AUC.

    Args:
        users: ``[num_pairs]`` user of each pair, in any order.
        labels: ``[num_pairs]`` 0 or 1.
        scores: ``[num_pairs]``.

    Returns:
        ``[n]`` users, sorted; ``[n]`` AUCs.
    """
    order = np.lexsort((scores, users))
    who, owner = np.unique(users[order], return_inverse=True)
    label, score = np.asarray(labels, np.float64)[order], scores[order]
    fresh = np.r_[True, (np.diff(owner) != 0) | (np.diff(score) != 0)][: len(owner)]
    level = np.cumsum(fresh) - 1
    owner_of_level = owner[fresh]
    positives, negatives = np.bincount(level, label), np.bincount(level, 1 - label)
    running = np.cumsum(negatives) - negatives
    before_user = np.r_[0.0, np.cumsum(np.bincount(owner_of_level, negatives))[:-1]] if len(who) else running
    wins = positives * (running - before_user[owner_of_level] + negatives / 2)
    num_positives, num_negatives = np.bincount(owner, label), np.bincount(owner, 1 - label)
    both = (num_positives > 0) & (num_negatives > 0)
    totals = num_positives[both] * num_negatives[both]
    return who[both], np.bincount(owner_of_level, wins, minlength=len(who))[both] / totals


def uauc(users: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], *, weighted: bool = False) -> float:
    """Return the mean AUC over users who have both classes.

    Args:
        users: ``[num_pairs]`` user of each pair.
        labels: ``[num_pairs]`` 0 or 1.
        scores: ``[num_pairs]``.
        weighted: weigh a user by the number of pairs (then often called GAUC).

    Returns:
        Mean, or NaN where no user has both classes.

    **Source:** Zhu et al., Optimized cost per click in Taobao display advertising, 2017, equation 10 (weighted).
    """
    who, values = user_aucs(users, labels, scores)
    if not len(who):
        return float("nan")
    if not weighted:
        return float(values.mean())
    names, counts = np.unique(users, return_counts=True)
    return float(np.average(values, weights=counts[np.searchsorted(names, who)]))
