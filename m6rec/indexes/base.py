"""What an index is: the nearest items to a vector, by inner product.

Items come and go without retraining or restart. This module knows no method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError


@dataclass(frozen=True)
class Neighbours:
    """What a search found.

    Args:
        ids: ``[num_queries, k]`` int64, best first; ``-1`` where there are fewer.
        scores: ``[num_queries, k]`` float32 inner products; minus infinity where there is no item.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


@runtime_checkable
class Index(Protocol):
    """Holds one vector per id and finds the nearest.

    Built from its config and the size of a vector. Ids are the caller's: any distinct non-negative integers.
    """

    Config: type
    config: Any
    dim: int

    def __len__(self) -> int:
        """Return the number of vectors."""
        ...

    def add(self, ids: Sequence[int] | NDArray[np.integer], vectors: NDArray[np.float32]) -> None:
        """Add vectors, or replace those of ids that are there.

        Args:
            ids: ``[n]`` distinct.
            vectors: ``[n, dim]``.

        Raises:
            DataError: wrong shape, repeated or negative ids, or numbers that are not finite; nothing was changed.
        """
        ...

    def remove(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        """Remove ids.

        Raises:
            DataError: an id is not there; nothing was removed.
        """
        ...

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the ``k`` ids with the highest inner product for each of ``queries`` (``[n, dim]``)."""
        ...

    def save(self, folder: Path) -> None:
        """Write the index into ``folder`` (made where it is missing)."""
        ...

    def load(self, folder: Path) -> None:
        """Replace what is held by what ``save`` wrote.

        Raises:
            RunError: the folder has no index, or one of another kind or size.
        """
        ...


def checked_entries(
    ids: Sequence[int] | NDArray[np.integer], vectors: NDArray[np.float32], dim: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids and vectors as arrays, or say what is wrong with them.

    Raises:
        DataError: see :meth:`Index.add`.
    """
    numbers, rows = np.asarray(ids, np.int64), np.ascontiguousarray(vectors, np.float32)
    if rows.shape != (len(numbers), dim):
        raise DataError(f"got vectors of shape {rows.shape}, expected ({len(numbers)}, {dim}): one row an id")
    if len(np.unique(numbers)) != len(numbers) or (numbers < 0).any():
        raise DataError("got repeated or negative ids, expected distinct ids from 0 up")
    if not np.isfinite(rows).all():
        raise DataError("got NaN or infinity in the vectors, expected finite numbers")
    return numbers, rows


def checked_queries(queries: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return query vectors as ``[n, dim]``, or say what is wrong with them.

    Raises:
        DataError: wrong shape, or numbers that are not finite.
    """
    rows = np.ascontiguousarray(queries, np.float32)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise DataError(f"got queries of shape {rows.shape}, expected (n, {dim})")
    if not np.isfinite(rows).all():
        raise DataError("got NaN or infinity in the queries, expected finite numbers")
    return rows
