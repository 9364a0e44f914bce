import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from m6rec.data.histories import Judgements
from m6rec.errors import DataError
from m6rec.evaluation.bootstrap import compare, intervals
from m6rec.evaluation.pairs import evaluate_pairs
from m6rec.metrics.calibration import ece
from m6rec.metrics.ranking import uauc


class Given:
    def __init__(self, probabilities, name="given"):
        self.probabilities, self.name = probabilities, name

    def score_pairs(self, pairs):
        return self.probabilities


@pytest.fixture
def truth():
    return np.random.default_rng(0).beta(2, 2, 400)


@pytest.fixture
def pairs(log, truth):
    rng = np.random.default_rng(1)
    labels = (rng.random(400) < truth).astype(np.float32)
    users, items = rng.integers(0, 40, 400).astype(np.int32), rng.integers(0, 30, 400).astype(np.int32)
    return Judgements(log.before("test"), users, items, labels, np.zeros(400, np.int64))


def test_every_metric_equals_its_own_function(pairs, truth):
    means = evaluate_pairs(Given(truth), pairs).means()
    p = truth.astype(np.float32)
    assert means["auc"] == pytest.approx(roc_auc_score(pairs.labels, p))
    assert means["uauc"] == pytest.approx(uauc(pairs.users, pairs.labels, p))
    assert means["log_loss"] == pytest.approx(log_loss(pairs.labels, p.astype(float)), rel=1e-6)
    assert means["brier"] == pytest.approx(brier_score_loss(pairs.labels, p), rel=1e-6)
    assert means["ece"] == pytest.approx(ece(pairs.labels, p))


def test_a_resample_equals_repeating_the_users_pairs(pairs, truth):
    evaluation = evaluate_pairs(Given(np.round(truth, 1)), pairs)
    weights = np.random.default_rng(2).integers(0, 3, len(evaluation.groups()))
    times = weights[np.searchsorted(evaluation.groups(), pairs.users)]
    repeated = evaluation.where(np.repeat(np.arange(400), times))
    expected, got = repeated.means(), evaluation.estimate(weights.astype(float))
    for metric in ("auc", "log_loss", "ece", "brier"):
        assert got[metric] == pytest.approx(expected[metric])


def test_knowing_the_truth_beats_noise(pairs, truth):
    noise = np.clip(truth + np.random.default_rng(3).normal(0, 0.4, 400), 0, 1)
    better, worse = evaluate_pairs(Given(truth, "truth"), pairs), evaluate_pairs(Given(noise, "noise"), pairs)
    assert compare(better, worse, "auc", draws=200).difference.low > 0
    assert compare(better, worse, "log_loss", draws=200).difference.high < 0
    interval = intervals(better, draws=200)["auc"]
    assert interval.low < interval.mean < interval.high


def test_wrong_scores_are_told(pairs):
    for scores, message in (
        (np.zeros(3), "expected"),
        (np.full(400, 1.5), "probabilities"),
        (np.full(400, np.nan), "probabilities"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_pairs(Given(scores), pairs)
