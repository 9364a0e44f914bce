"""Random states as a pure function of where a run stands, so that resuming needs no saved state of any generator.

This module knows no loop.
"""

import random

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
