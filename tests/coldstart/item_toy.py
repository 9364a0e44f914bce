"""A little log of item tasks with a planted taste: a user likes an item that has what she likes."""

import numpy as np
import torch

from m6rec.coldstart.item_phases import ItemPhases, PhaseConfig, Rows
from m6rec.coldstart.item_tasks import Facts, TaskCutter

USERS, ITEMS, NAMES = 40, 60, ("genre=war", "genre=drama", "genre=opera", "year=1994", "year=1995")


def toy(seed: int = 0, texts: bool = True, rows: int = 2400) -> TaskCutter:
    """Return judgements of items with two attribute fields and, where asked for, texts that say the same."""
    rng = np.random.default_rng(seed)
    attributes = np.zeros((ITEMS, len(NAMES)), dtype=np.float32)
    genre = rng.integers(0, 3, ITEMS)
    attributes[np.arange(ITEMS), genre] = 1
    attributes[np.arange(ITEMS), 3 + rng.integers(0, 2, ITEMS)] = 1
    likes = rng.integers(0, 3, USERS)
    users, items = rng.integers(0, USERS, rows), rng.integers(0, ITEMS, rows)
    labels = (rng.random(rows) < np.where(likes[users] == genre[items], 0.9, 0.2)).astype(np.float32)
    phases = ItemPhases.of(Rows(users, items, labels, labels), PhaseConfig(shots=2, min_queries=4), seed)
    words = torch.from_numpy(attributes) @ torch.randn(len(NAMES), 6, generator=torch.Generator().manual_seed(1))
    return TaskCutter(phases, Facts.of(torch.from_numpy(attributes), NAMES, words if texts else None), USERS)
