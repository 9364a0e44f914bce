import numpy as np
import pytest
import torch

from m6rec.baselines.sasrec import SASRec, SASRecConfig
from m6rec.baselines.sequences import recent_rows, training_windows, window_batches
from m6rec.data.histories import Histories, Queries
from m6rec.errors import DataError
from tests.contracts.baseline_contract import BaselineContract, ring_log

SMALL = {"width": 16, "num_layers": 1, "dropout": 0.1, "max_length": 4, "learning_rate": 0.02, "batch_tokens": 64}
SMALL = {**SMALL, "max_epochs": 12}


class TestSASRec(BaselineContract):
    name, learns, settings = "sasrec", "order", SMALL


class TestSASRecOnSampledNegatives(BaselineContract):
    name, learns, settings = "sasrec", "order", {**SMALL, "num_negatives": 30, "positions": "relative"}


@pytest.fixture(scope="module")
def log() -> Histories:
    return ring_log(80)


def test_the_global_chance_is_left_alone(log):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    SASRec(SASRecConfig(**{**SMALL, "max_epochs": 1})).fit(log.before("train"))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_validation_queries_stop_the_training_and_keep_all_training_events(log):
    baseline = SASRec(SASRecConfig(**{**SMALL, "max_epochs": 3}))
    baseline.fit(log.before("train"), log.queries("valid"))
    assert len(baseline.log.values) == 3
    assert baseline.log.stopped == "max_epochs"
    assert baseline.log.values[baseline.log.best_epoch - 1] == max(baseline.log.values)


def test_bf16_learns_the_same_thing(log):
    queries, scores = log.queries("test"), {}
    for bf16 in (False, True):
        baseline = SASRec(SASRecConfig(**{**SMALL, "bf16": bf16, "dropout": 0.0, "max_epochs": 5, "max_length": 10}))
        baseline.fit(log.before("train"), log.queries("valid"))
        scores[bf16] = baseline.score(queries)
    assert np.corrcoef(scores[False].ravel(), scores[True].ravel())[0, 1] > 0.9


def test_histories_too_short_to_hold_anything_out_are_learnt_all_the_same():
    items = np.tile(np.array([0, 1, 2, 3], np.int32), 20)
    train = Histories(np.arange(0, 81, 2), items, np.zeros(80, np.int8), 5)
    baseline = SASRec(SASRecConfig(**{**SMALL, "learning_rate": 0.05}))
    baseline.fit(train)
    ask = Queries(
        train.select(train.items % 2 == 0), np.array([0, 1], np.int32), np.arange(3), np.array([1, 3], np.int32)
    )
    assert baseline.score(ask)[:, [1, 3]].argmax(1).tolist() == [0, 1]


def test_nobody_with_two_events_is_told():
    lonely = Histories(np.arange(4), np.arange(3, dtype=np.int32), np.zeros(3, np.int8), 3)
    with pytest.raises(DataError, match="two training events"):
        SASRec().fit(lonely)


@pytest.mark.parametrize("length", [1, 3, 50])
def test_every_item_but_the_first_is_a_target_once(length):
    train = ring_log(50, seed=2).before("train")
    expected = [
        (row[place - 1], row[place])
        for row in ([i for i in train.items[train.of(u)].tolist() if i >= 0] for u in range(train.num_users))
        for place in range(1, len(row))
    ]
    pairs = []
    for inputs, targets in window_batches(train, length, 16, np.random.default_rng(0)):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] <= length
        assert inputs.size <= max(16, length)
        np.testing.assert_array_equal(inputs >= 0, targets >= 0)
        pairs += zip(inputs[inputs >= 0].tolist(), targets[targets >= 0].tolist(), strict=True)
    assert sorted(pairs) == sorted(expected)


def test_long_histories_are_cut_at_other_places_each_time():
    train = Histories(np.array([0, 40]), np.arange(40, dtype=np.int32), np.zeros(40, np.int8), 40)
    rng = np.random.default_rng(0)
    cuts = {tuple(training_windows(train, 10, rng)[0].tolist()) for _ in range(20)}
    assert len(cuts) > 3


def test_recent_rows_end_in_the_last_item():
    history = Histories(np.array([0, 3, 3, 5]), np.array([4, -1, 6, 1, 2], np.int32), np.zeros(5, np.int8), 9)
    assert recent_rows(history, np.array([2, 0, 1]), 2).tolist() == [[1, 2], [4, 6], [-1, -1]]
    assert recent_rows(history, np.array([1]), 2).tolist() == [[-1]]
