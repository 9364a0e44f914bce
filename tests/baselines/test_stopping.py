import logging

import numpy as np
import pytest
import torch

from m6rec.baselines.stopping import hold_out_last, mean_ndcg, sample_queries, train_until_plateau
from m6rec.evaluation.evaluator import evaluate
from tests.contracts.baseline_contract import ring_log


def run(values, **settings):
    """Train a counter: its one weight is the number of epochs run since it was last restored."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    left = iter(values)

    def epoch() -> float:
        network.weight.data += 1
        return 0.5

    settings = {"max_epochs": len(values), "patience": 2, "decays": 0, "decay": 0.1, **settings}
    log = train_until_plateau(network, optimizer, epoch, lambda: next(left), metric="m", **settings)
    return log, network.weight.item(), optimizer.param_groups[0]["lr"]


def test_the_best_weights_are_kept_and_the_plateau_ends_it():
    log, weight, _ = run([0.1, 0.3, 0.2, 0.3, 0.9])
    assert (log.best_epoch, log.stopped, len(log.values)) == (2, "plateau", 4)
    assert weight == 2


def test_a_decay_goes_back_to_the_best_weights_and_goes_on():
    log, weight, rate = run([0.1, 0.3, 0.2, 0.2, 0.4, 0.1, 0.1, 0.9], decays=1)
    assert (log.best_epoch, log.stopped, len(log.values)) == (5, "plateau", 7)
    assert weight == 3  # two epochs, restored, one more
    assert rate == pytest.approx(0.1)


def test_a_training_that_still_rises_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="m6rec"):
        log, weight, _ = run([0.1, 0.2, 0.3])
    assert (log.best_epoch, log.stopped, weight) == (3, "max_epochs", 3)
    assert "stopped by max_epochs after 3 epochs, best 3" in caplog.text


def test_where_nothing_is_held_out_the_loss_decides():
    log, _, _ = run([float("nan")] * 5)
    assert (log.values, log.stopped) == ([-0.5] * 3, "plateau")  # the loss never falls


def test_held_out_events_are_the_last_ones_and_leave_training():
    train = ring_log(60).before("train")
    rest, queries = hold_out_last(train, 0.5, 1000, seed=0)
    able = sum((train.items[train.of(user)] >= 0).sum() >= 3 for user in range(60))
    assert len(queries) == round(0.5 * able)
    for query, user in enumerate(queries.users):
        mine = train.items[train.of(user)]
        mine = mine[mine >= 0]
        assert queries.targets_of(query).tolist() == [mine[-1]]
        assert rest.items[rest.of(user)].tolist() == mine[:-1].tolist()
    assert rest.num_events == (train.items >= 0).sum() - len(queries)
    assert len(hold_out_last(train, 0.5, 4, seed=0)[1]) == 4


def test_a_sample_of_queries_is_drawn_once():
    queries = ring_log(60).queries("test")
    first, second = (sample_queries(queries, 10, seed=3).users for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) == 10
    assert sample_queries(queries, 100, seed=3) is queries


def test_mean_ndcg_agrees_with_the_evaluator():
    class Noise:
        name = "noise"
        table = np.random.default_rng(0).random((60, 40), np.float32)

        def score(self, queries):
            return self.table[queries.users]

    queries = ring_log(60).queries("test")
    assert mean_ndcg(Noise().score, queries, batch_size=7) == pytest.approx(
        evaluate(Noise(), queries).means()["ndcg@10"]
    )
