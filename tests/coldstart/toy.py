"""Made-up users and items for the tests of the cold start."""

import numpy as np
import torch

from m6rec.coldstart.episodes import Episodes
from m6rec.coldstart.events import ColdBatch, Events, ItemTable


def episodes(num_users, least, most, num_items=60, seed=0):
    """Return users with ``least`` to ``most`` judgements of distinct items, values 1 to 5."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(least, most + 1, num_users)
    items = np.concatenate([rng.permutation(num_items)[:count] for count in counts])
    values = rng.integers(1, 6, len(items)).astype(np.float32)
    offsets = np.r_[0, np.cumsum(counts)].astype(np.int64)
    times = np.arange(len(items), dtype=np.int64)
    return Episodes(np.arange(100, 100 + num_users), offsets, items, values, (values >= 4).astype(np.float32), times)


def table(num_items=20, layers=1, width=4, columns=3, seed=0):
    """Return items with random features."""
    draw = torch.Generator().manual_seed(seed)
    return ItemTable(
        torch.randn(num_items, layers, width, generator=draw),
        torch.randint(2, (num_items, columns), generator=draw).float(),
    )


def events(users, number, num_items=20, dim=2, seed=0):
    """Return ``number`` judged items for each of ``users``."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    return Events(
        places=torch.randint(num_items, (users, number), generator=draw),
        base=normal(users, number),
        counts=torch.rand(users, number, generator=draw),
        taste=normal(users, number, dim),
        values=normal(users, number),
        keep=torch.ones(users, number, dtype=torch.bool),
    )


def batch(users=3, support=4, query=5, seed=0, **shape):
    """Return a batch of users."""
    return ColdBatch(
        events(users, support, seed=seed, **shape), events(users, query, seed=seed + 1, **shape), torch.zeros(users, 0)
    )


def rows_of(each, which):
    """Return some users of a batch."""
    if isinstance(each, ColdBatch):
        return ColdBatch(rows_of(each.support, which), rows_of(each.query, which), each.profiles[which])
    return Events(**{name: value[which] for name, value in vars(each).items()})
