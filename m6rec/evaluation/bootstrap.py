"""How sure a figure is: intervals by resampling users, and paired comparison of two runs.

The same seed draws the same users for every evaluation of the same queries, so the difference of two resamples is a
paired one. It knows no metric by name.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError
from m6rec.evaluation.result import Evaluation, PairEvaluation, Result


@dataclass(frozen=True)
class Interval:
    """A figure and where it would fall with other users.

    Args:
        mean: on the users at hand.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A paired comparison: first minus second, on the same queries.

    Args:
        metric: what is compared.
        first: name of the first.
        second: name of the second.
        difference: first minus second, with its interval.
        ratio: first over second, with its interval.
        p_value: two-sided bootstrap p-value of no difference; never below 1 / number of draws.
    """

    metric: str
    first: str
    second: str
    difference: Interval
    ratio: Interval
    p_value: float


def resample(result: Result, draws: int = 1000, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Return per metric ``[draws]`` values on users drawn with replacement.

    Args:
        result: an evaluation.
        draws: number of resamples.
        seed: of the draws; the same seed draws the same users.
    """
    rng, count = np.random.default_rng(seed), len(result.groups())
    estimates = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        estimates.append(result.estimate(weights))
    return {metric: np.array([estimate[metric] for estimate in estimates]) for metric in result.metrics}


def intervals(result: Result, draws: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Return every metric with its percentile interval over users.

    **Source:** Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13; users and not queries are
    drawn, because one user's queries are not independent.
    """
    means = result.means()
    return {metric: _interval(means[metric], values, level) for metric, values in resample(result, draws, seed).items()}


def compare(
    first: Evaluation | PairEvaluation,
    second: Evaluation | PairEvaluation,
    metric: str,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations of the same queries (or pairs), user by user.

    **Source:** Koehn, Statistical significance tests for machine translation evaluation, 2004 (paired bootstrap).

    Raises:
        DataError: they were not made on the same queries in the same order, or lack the metric.
    """
    if not _same_questions(first, second):
        raise DataError(
            f"got {first.name!r} and {second.name!r} on different queries, expected the same ones in the same order: "
            "evaluate both on one split of one dataset"
        )
    if metric not in first.metrics or metric not in second.metrics:
        raise DataError(f"got metric {metric!r}, expected one that both have: {', '.join(first.metrics)}")
    one, two = first.means()[metric], second.means()[metric]
    ones, twos = (resample(result, draws, seed)[metric] for result in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _interval(float(np.divide(one, two)), ones / twos, level)
    difference = ones - twos
    tail = min((difference <= 0).mean(), (difference >= 0).mean())
    return Comparison(
        metric=metric,
        first=first.name,
        second=second.name,
        difference=_interval(one - two, difference, level),
        ratio=ratio,
        p_value=float(min(1.0, max(2 * tail, 1 / draws))),
    )


def _interval(mean: float, values: NDArray[np.float64], level: float) -> Interval:
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(mean, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _same_questions(first: Evaluation | PairEvaluation, second: Evaluation | PairEvaluation) -> bool:
    if type(first) is not type(second):
        return False
    names = ("users", "offsets", "targets") if isinstance(first, Evaluation) else ("users", "labels")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)
