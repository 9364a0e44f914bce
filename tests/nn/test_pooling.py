"""Pooling ignores padding, whatever stands in it."""

import torch

from m6rec.nn import pooling

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 5.0], [7.0, 7.0], [6.0, 8.0]]])
KEEP = torch.tensor([[True, True, False], [True, True, True]])


def test_mean_over_kept_tokens() -> None:
    torch.testing.assert_close(pooling.mean(HIDDEN, KEEP), torch.tensor([[2.0, 3.0], [6.0, 20 / 3]]))


def test_mean_of_nothing_is_zero() -> None:
    assert pooling.mean(HIDDEN, KEEP & False).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_last_kept_token() -> None:
    assert pooling.last(HIDDEN, KEEP).tolist() == [[3.0, 4.0], [6.0, 8.0]]


def test_last_looks_past_holes() -> None:
    assert pooling.last(HIDDEN, torch.tensor([[True, False, True], [True, False, False]])).tolist() == [[9, 9], [5, 5]]


def test_states_at_given_columns() -> None:
    assert pooling.at(HIDDEN, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[9, 9], [1, 2]], [[7, 7], [7, 7]]]
