"""Chance as a function of a place: the same again, and nothing of it left behind."""

import random

import numpy as np
import torch

from m6rec.training.chance import drawn_at, seed_all


def draws():
    return random.random(), float(np.random.random()), float(torch.rand(1))


def test_a_place_gives_the_same_draws():
    with drawn_at(3, 1, 4):
        first = draws()
    draws()
    with drawn_at(3, 1, 4):
        assert draws() == first
    with drawn_at(3, 1, 5):
        assert draws() != first


def test_nothing_is_left_behind():
    seed_all(7)
    wanted = [draws(), draws()]
    seed_all(7)
    found = [draws()]
    with drawn_at(1):
        draws()
    assert [*found, draws()] == wanted
