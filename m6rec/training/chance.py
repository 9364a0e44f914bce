"""Random states as a pure function of where a run stands, so that resuming needs no saved state of any generator.

This module knows no loop.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*place: int) -> None:
    """Seed python, numpy and torch (every device) from ``place``, e.g. (seed, step, process).

    A run taken up at step 100 draws what the uninterrupted one drew there, whatever an evaluation, another library or
    another number of processes has drawn in between.
    """
    words = np.random.SeedSequence(place).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # the legacy generator is what other libraries draw from
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


@contextmanager
def drawn_at(*place: int) -> Iterator[None]:
    """Seed all from ``place`` for a while, then leave every random state (of the CPU) as it was found."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_all(*place)
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])
