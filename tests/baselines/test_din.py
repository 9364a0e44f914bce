import dataclasses

import numpy as np
import pytest

from m6rec.baselines.din import DIN, DINConfig, _hold_out_latest, _value_edges, events_before
from m6rec.baselines.rate import Rate
from m6rec.data.histories import Histories, Judgements
from m6rec.errors import DataError
from m6rec.metrics.ranking import auc
from tests.contracts.baseline_contract import PairBaselineContract, group_judgements, ring_log

SMALL = {"width": 16, "hidden": 32, "max_history": 6, "dropout": 0.0, "learning_rate": 0.01, "max_epochs": 9}


class TestDIN(PairBaselineContract):
    name, settings = "din", SMALL

    def test_it_reads_the_history_which_the_rate_cannot(self, fitted, log):
        pairs, rate = group_judgements(log, 2), Rate()
        rate.fit_pairs(group_judgements(log, 0))
        assert auc(pairs.labels, fitted.score_pairs(pairs)) > 0.85
        assert auc(pairs.labels, rate.score_pairs(pairs)) < 0.65


@pytest.fixture
def history() -> Histories:
    values = np.array([1, np.nan, 5, 2, 4], np.float32)
    verbs = np.array([0, 1, 0, 1, 1], np.int16)
    items = np.array([3, -1, 4, 5, 6], np.int32)
    return Histories(
        np.array([0, 3, 3, 5]), items, np.zeros(5, np.int8), 9, values=values, verbs=verbs, verb_names=("see", "buy")
    )


def judgements(history: Histories, users, items, labels, lengths) -> Judgements:
    kinds = (np.int32, np.int32, np.float32, np.int64)
    columns = (np.asarray(column, kind) for column, kind in zip((users, items, labels, lengths), kinds, strict=True))
    return Judgements(history, *columns)


def test_a_pair_sees_the_latest_events_before_it(history):
    pairs = judgements(history, [0, 0, 1, 2], [0] * 4, [0] * 4, [3, 1, 0, 2])
    items, verbs, values = events_before(pairs, np.arange(4), 2, _value_edges(history, 10))
    assert items.tolist() == [[-1, 4], [-1, 3], [-1, -1], [5, 6]]
    assert verbs.tolist() == [[1, 0], [-1, 0], [-1, -1], [1, 1]]
    assert values.tolist() == [[-1, 3], [-1, 0], [-1, -1], [1, 2]]


@pytest.mark.parametrize("column", ["values", "verbs"])
def test_values_and_verbs_can_be_learnt(column):
    rng, count = np.random.default_rng(0), 600
    signs = {"values": rng.choice([1.0, 5.0], count).astype(np.float32), "verbs": rng.integers(0, 2, count, np.int16)}
    items = rng.integers(0, 5, count).astype(np.int32)
    sign = {column: signs[column]}
    log = Histories(np.arange(count + 1), items, np.zeros(count, np.int8), 5, verb_names=("see", "buy"), **sign)
    labels = sign[column] == sign[column].max()
    pairs = judgements(log, np.arange(count), rng.integers(0, 5, count), labels, np.ones(count))
    baseline = DIN(DINConfig(**SMALL))
    baseline.fit_pairs(pairs)
    assert auc(pairs.labels, baseline.score_pairs(pairs)) > 0.99


def test_the_latest_pairs_of_each_user_are_held_out():
    pairs = group_judgements(ring_log(300), 0)
    pairs = dataclasses.replace(pairs, lengths=np.random.default_rng(0).integers(0, 5, len(pairs)))
    rest, held = _hold_out_latest(pairs, 0.3, seed=0)
    assert len(rest) + len(held) == len(pairs)
    assert len(held) == pytest.approx(0.3 * len(pairs), rel=0.05)
    for user in range(300):
        assert (held.users == user).sum() in (2, 3)
        assert rest.lengths[rest.users == user].max() <= held.lengths[held.users == user].min()


def test_nothing_to_learn_from_is_told():
    pairs = group_judgements(ring_log(30), 0)
    none = dataclasses.replace(
        pairs, users=pairs.users[:0], items=pairs.items[:0], labels=pairs.labels[:0], lengths=pairs.lengths[:0]
    )
    with pytest.raises(DataError, match="expected some of both"):
        DIN().fit_pairs(none)


def test_many_values_are_cut_at_quantiles(history):
    many = dataclasses.replace(history, values=np.array([0.1, 0.2, 0.3, 0.4, 9], np.float32))
    assert len(_value_edges(many, 3)) == 2
    assert len(_value_edges(dataclasses.replace(history, values=None), 3)) == 0
