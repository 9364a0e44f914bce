"""One strict order of the catalogue per user: by score, and where scores tie by a seeded random key.

Ties decide whole tables (popularity HR@10 on ML-100K is .050 with ties by item id and .079 at random), so the rule
stands in one place. It knows no model and no metric.
"""

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError

Keys = NDArray[np.uint64]
#: The key of an item that must not be ranked at all.
EXCLUDED = np.uint64(0)


def order_keys(scores: NDArray[np.float32], users: NDArray[np.integer], items: NDArray[np.integer], seed: int) -> Keys:
    """Return integers whose order is the order of the scores, ties broken at random.

    The random part depends on (seed, user, item) alone: neither the order of the queries nor their batching moves it.

    Args:
        scores: ``[num_queries, n]``; minus infinity is allowed, NaN is not.
        users: ``[num_queries]`` user of each row.
        items: ``[n]`` or ``[num_queries, n]`` item of each column.
        seed: of the tie-breaking key.

    Returns:
        ``[num_queries, n]`` uint64, distinct within a row of distinct items; higher is better; never :data:`EXCLUDED`.

    Raises:
        DataError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise DataError("got NaN among the scores, expected numbers: the model diverged or divided by zero")
    # Adding zero turns -0.0 into 0.0, whose bits would otherwise rank it lower.
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)
    ordered = bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    # An odd factor modulo 2**32 maps distinct item hashes to distinct keys: one multiplication per score.
    factor = _mix(np.asarray(users, np.uint32), seed) | np.uint32(1)
    chance = _mix(np.asarray(items, np.uint32), seed + 1) * factor[:, None]
    return (ordered.astype(np.uint64) << np.uint64(32)) | chance


def _mix(values: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Return a seeded one-to-one scrambling of 32-bit numbers (the finaliser of MurmurHash3, twice)."""
    salts = np.random.default_rng(seed).integers(1 << 32, size=2, dtype=np.uint32)
    for salt in salts:
        values = values ^ salt
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            values = (values ^ (values >> np.uint32(shift))) * np.uint32(factor)
        values = values ^ (values >> np.uint32(16))
    return values


def top(keys: Keys, count: int) -> NDArray[np.int64]:
    """Return the columns of the ``count`` highest keys of each row, best first; ``-1`` where a row has fewer.

    >>> top(np.array([[5, 9, 7], [0, 0, 4]], dtype=np.uint64), 2).tolist()
    [[1, 2], [2, -1]]
    """
    count = min(count, keys.shape[1])
    # Partitioning values and then looking for them is several times faster than argpartition.
    least = np.partition(keys, keys.shape[1] - count, axis=1)[:, keys.shape[1] - count]
    rows, columns = np.nonzero(keys >= np.maximum(least, EXCLUDED + np.uint64(1))[:, None])
    order = np.lexsort((~keys[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    best = np.full((len(keys), count), -1, dtype=np.int64)
    best[rows, np.arange(len(rows)) - np.searchsorted(rows, rows)] = columns
    return best
