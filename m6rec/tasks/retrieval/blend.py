"""How much the counted terms weigh beside the learnt score: chosen on validation queries. Knows scores only."""

import itertools
import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Queries

Floats = NDArray[np.float32]
Parts = Callable[[Queries], tuple[Floats, Floats, Floats]]

COOCCURRENCE_WEIGHTS = (0.0, 0.4, 0.7, 1.0, 1.3)
TEXT_WEIGHTS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
DEFAULT = (0.7, 1.0)
MOST_QUERIES = 4000
logger = logging.getLogger(__name__)


def choose_blend(
    queries: Queries,
    parts: Parts,
    fixed: tuple[float | None, float | None],
    seed: int,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Return the weights of co-occurrence and text likeness with the best validation NDCG@10.

    Args:
        queries: validation queries; a seeded sample of at most :data:`MOST_QUERIES` is asked.
        parts: queries -> learnt score, co-occurrence and text likeness, ``[num_queries, num_items]`` each.
        fixed: weights that are given; ``None`` is searched.
        seed: of the sample.
    """
    grid = list(itertools.product(_options(fixed[0], COOCCURRENCE_WEIGHTS), _options(fixed[1], TEXT_WEIGHTS)))
    if len(grid) == 1:
        return grid[0]
    if not len(queries):
        cooccurrence, text = (
            default if given is None else given for given, default in zip(fixed, DEFAULT, strict=True)
        )
        return cooccurrence, text
    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries))[:MOST_QUERIES])
    sample = queries.take(chosen)
    totals = np.zeros(len(grid))
    for batch in sample.batches(batch_size):
        asked = sample.take(batch)
        learnt, followed, alike = parts(asked)
        rows = np.repeat(np.arange(len(asked)), np.diff(asked.target_offsets))
        met = _met(asked)
        for number, (cooccurrence, text) in enumerate(grid):
            scores = learnt + cooccurrence * followed + text * alike
            scores[met] = -np.inf
            ranks = (scores[rows] > scores[rows, asked.targets][:, None]).sum(1) + 1
            totals[number] += (1 / np.log2(ranks[ranks <= 10] + 1)).sum()
    best = int(totals.argmax())
    logger.info(
        "counted terms, chosen on %d validation queries: co-occurrence %.1f, text %.1f (NDCG@10 %.4f; %.4f without)",
        len(sample), *grid[best], totals[best] / len(sample.targets), totals[0] / len(sample.targets),
    )  # fmt: skip
    return grid[best]


def _options(given: float | None, grid: tuple[float, ...]) -> tuple[float, ...]:
    return grid if given is None else (given,)


def _met(queries: Queries) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return (row, item) of everything in the queries' histories."""
    rows, events = queries.history.events_of(queries.users)
    items = queries.history.items[events]
    return rows[items >= 0], items[items >= 0]
