import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as their_log_loss

from m6rec.metrics.calibration import bin_numbers, brier, ece, log_loss


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    probabilities = rng.beta(2, 5, 3000)
    return (rng.random(3000) < probabilities**1.3).astype(np.float64), probabilities


def test_log_loss_and_brier_equal_scikit_learn(pairs):
    labels, probabilities = pairs
    assert log_loss(labels, probabilities) == pytest.approx(their_log_loss(labels, probabilities))
    assert brier(labels, probabilities) == pytest.approx(brier_score_loss(labels, probabilities))


@pytest.mark.parametrize(("bins", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_ece_equals_scikit_learns_calibration_curve(pairs, bins, strategy):
    labels, probabilities = pairs
    observed, promised = calibration_curve(labels, probabilities, n_bins=10, strategy=strategy)
    counts = np.bincount(bin_numbers(probabilities, 10, bins), minlength=10)
    expected = np.abs(observed - promised) @ counts[counts > 0] / len(labels)
    assert ece(labels, probabilities, 10, bins) == pytest.approx(expected)


def test_a_sure_mistake_costs_a_finite_loss():
    assert log_loss(np.array([1]), np.array([0.0])) == pytest.approx(16.118, abs=1e-3)


def test_ece_is_zero_when_the_promise_holds_and_the_gap_when_not():
    labels = np.array([1, 0, 0, 0])
    assert ece(labels, np.full(4, 0.25)) == pytest.approx(0)
    assert ece(labels, np.full(4, 0.75)) == pytest.approx(0.5)


def test_weights_count_pairs(pairs):
    labels, probabilities = pairs
    weights = np.random.default_rng(1).integers(0, 3, len(labels))
    repeated = ece(np.repeat(labels, weights), np.repeat(probabilities, weights))
    assert ece(labels, probabilities, weights=weights) == pytest.approx(repeated)
