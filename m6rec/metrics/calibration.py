"""How far probabilities can be taken at their word: log loss, Brier score, expected calibration error.

Plain numpy, usable alone. It knows no model.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[Any]
Probabilities = NDArray[Any]


def log_losses(labels: Labels, probabilities: Probabilities, floor: float = 1e-7) -> NDArray[np.float64]:
    """Return ``[num_pairs]`` the negative log-likelihood, in nats, of each label.

    Args:
        labels: ``[num_pairs]`` 0 or 1.
        probabilities: ``[num_pairs]`` of label 1.
        floor: probabilities are moved at least this far from 0 and 1, so that one sure mistake costs 16 nats and not
            infinitely many.
    """
    p = np.clip(np.asarray(probabilities, np.float64), floor, 1 - floor)
    return -(labels * np.log(p) + (1 - labels) * np.log1p(-p))


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean negative log-likelihood in nats.

    >>> round(log_loss(np.array([1, 0]), np.array([0.5, 0.5])), 4)
    0.6931
    """
    return float(log_losses(labels, probabilities).mean())


def brier(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean squared distance between label and probability.

    **Source:** Brier, Verification of forecasts expressed in terms of probability, 1950.

    >>> brier(np.array([1, 0]), np.array([0.5, 0.5]))
    0.25
    """
    return float(((np.asarray(probabilities, np.float64) - labels) ** 2).mean())


def bin_numbers(
    probabilities: Probabilities, num_bins: int = 15, bins: Literal["width", "mass"] = "width"
) -> NDArray[np.int64]:
    """Return ``[num_pairs]`` the bin of each probability, 0-based.

    Args:
        probabilities: ``[num_pairs]``.
        num_bins: number of bins.
        bins: of equal width on [0, 1], or of equal mass (quantiles: better where all probabilities are small).
    """
    edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    if bins == "mass":
        edges = np.unique(np.quantile(probabilities, edges))
    return np.searchsorted(edges, probabilities, side="right")


def ece(
    labels: Labels,
    probabilities: Probabilities,
    num_bins: int = 15,
    bins: Literal["width", "mass"] = "width",
    weights: NDArray[Any] | None = None,
) -> float:
    """Return the expected calibration error: mean gap between promised and observed rate over bins.

    Args:
        labels: ``[num_pairs]`` 0 or 1.
        probabilities: ``[num_pairs]`` of label 1.
        num_bins: number of bins.
        bins: of equal width or of equal mass.
        weights: ``[num_pairs]`` optional multiplicities (a bootstrap resample is one).

    **Source:** Guo et al., On calibration of modern neural networks, 2017, equation 3.

    >>> round(ece(np.array([1, 1, 0, 0]), np.array([0.9, 0.9, 0.1, 0.1])), 4)
    0.1
    """
    number = bin_numbers(probabilities, num_bins, bins)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    gaps = np.bincount(number, weights * (np.asarray(probabilities, np.float64) - labels), minlength=num_bins)
    return float(np.abs(gaps).sum() / weights.sum())
