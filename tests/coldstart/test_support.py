import numpy as np
import pytest

from m6rec.coldstart.episodes import Protocol
from m6rec.coldstart.support import Questions, curve
from tests.coldstart.toy import episodes

PROTOCOL = Protocol(support=3, min_queries=2)


@pytest.fixture
def users():
    return episodes(30, 6, 12)


def test_the_truth_is_perfect_at_every_size(users):
    questions = Questions.of(users, PROTOCOL)
    found = curve(lambda size: questions.values, users, PROTOCOL)
    assert list(found) == [0, 1, 2]
    for metrics in found.values():
        assert metrics == {"auc": 1, "within_user_auc": 1, "ndcg@10": 1, "mse": 0, "mae": 0}


def test_a_user_level_moves_the_pooled_auc_and_nothing_within_users(users):
    questions = Questions.of(users, PROTOCOL)
    noise = np.random.default_rng(1).random(len(questions.users))
    rates = np.bincount(questions.users, questions.labels) / np.bincount(questions.users)
    plain, levelled = questions.judge(noise), questions.judge(noise + 5 * rates[questions.users])
    assert levelled["auc"] > plain["auc"] + 0.1
    assert levelled["within_user_auc"] == plain["within_user_auc"]
    assert levelled["ndcg@10"] == plain["ndcg@10"]


def test_ndcg_by_hand():
    users = episodes(1, 5, 5)
    questions = Questions(
        np.zeros(3, np.int64), np.arange(3), np.ones(3, np.float32), np.array([1.0, 0.0, 1.0], np.float32)
    )
    found = questions.judge(np.array([0.9, 0.5, 0.1]))["ndcg@10"]
    assert found == pytest.approx((1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3)))
    assert len(users) == 1


def test_all_labels_equal_leave_rankings_undefined_and_errors_defined(users):
    questions = Questions.of(users, PROTOCOL)
    alike = Questions(questions.users, questions.items, questions.values, np.zeros_like(questions.labels))
    found = alike.judge(np.zeros(len(alike.users)))
    assert np.isnan([found["auc"], found["within_user_auc"], found["ndcg@10"]]).all()
    assert found["mse"] > 0
