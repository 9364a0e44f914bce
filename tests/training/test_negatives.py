"""Which mined items are sure negatives, and which of them are drawn."""

import numpy as np
import pytest
import torch

from m6rec.training.negatives import draw, sure_negatives

IDS = np.array([[9, 1, 2, 3, 4], [8, 5, -1, 6, -1], [7, -1, -1, -1, -1], [-1, 1, 2, 3, 4]], np.int32)
CHANCES = np.array([[0.4, 0.9, 0.3, 0.05, 0.2], [0.1, 0.5, 0, 0.01, 0], [0.3, 0, 0, 0, 0], [0, 0.4, 0.3, 0.2, 0.1]])


def kept(rule, threshold):
    found = sure_negatives(CHANCES.astype(np.float32), IDS, rule, threshold)
    return [IDS[row, 1:][found[row]].tolist() for row in range(len(IDS))]


def test_rules():
    assert kept("none", 0.5) == [[1, 2, 3, 4], [5, 6], [], [1, 2, 3, 4]]
    assert kept("absolute", 0.25) == [[3, 4], [6], [], [3, 4]]
    # Of two that are there the lower one is the lower half; empty places are no part of a list.
    assert kept("quantile", 0.5) == [[3, 4], [6], [], [3, 4]]
    assert kept("quantile", 1.0) == kept("none", 0.0)
    # Without a positive there is nothing to be relative to.
    assert kept("relative", 0.5) == [[3], [6], [], []]


@pytest.mark.parametrize("rule", ["absolute", "quantile", "relative"])
def test_nothing_survives_the_strictest_threshold(rule):
    assert kept(rule, 0.0) == [[], [], [], []]


def test_drawn_are_distinct_survivors_and_then_any_items():
    ids = torch.from_numpy(IDS[:, 1:].astype(np.int64))
    keep = torch.from_numpy(sure_negatives(CHANCES.astype(np.float32), IDS, "quantile", 0.5))
    torch.manual_seed(0)
    found = torch.stack([draw(keep, ids, 2, 1000) for _ in range(50)])
    assert all(set(row[0].tolist()) == {3, 4} for row in found)
    assert all(6 in row[1].tolist() for row in found)
    assert len(found[:, 2].unique()) > 50
    assert ((found >= 0) & (found < 1000)).all()


def test_all_random_where_nothing_survives():
    found = draw(torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.long), 5, 1000)
    assert found.shape == (4, 5)
    assert len(found.unique()) > 10


def test_the_global_generator_decides():
    keep, ids = torch.ones(3, 8, dtype=torch.bool), torch.arange(24).view(3, 8)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw(keep, ids, 3, 24))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
