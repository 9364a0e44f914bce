"""Search over items of several vectors each: near vectors by another index, then MaxSim. Knows no model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m6rec.config import plain
from m6rec.errors import DataError
from m6rec.indexes import INDEXES
from m6rec.indexes.base import Neighbours, checked_entries, checked_queries
from m6rec.indexes.storage import read, write
from m6rec.nn.maxsim import best_matches

# Item vectors that one query is held against at once: 32 MB of 128 numbers each.
VECTORS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class MultiVectorConfig:
    """Settings of :class:`MultiVectorIndex`."""

    inner: str = "exact"
    """Index on this shelf that finds vectors near a query's; changes results where it is approximate."""
    near: int = 64
    """How many near vectors of each query vector make their items candidates, k at least (changes results)."""
    half: bool = False
    """Whether MaxSim reads 16-bit copies of the vectors: half the memory (changes results by rounding)."""


class MultiVectorIndex:
    """Items of several vectors, found by the near vectors of each query vector and ordered by MaxSim.

    Vectors are ``[n, vectors, dim]`` where other indexes have ``[n, dim]``, queries ``[n, tokens, dim]``; a vector of
    zeros is padding. With one vector each it is any other index: MaxSim is the inner product.

    **Source:** Khattab and Zaharia, ColBERT (arXiv 2004.12832), sections 3.5 and 3.6: end-to-end retrieval.
    **Differs:** candidates come from a single index of the shelf, without compressed residuals (PLAID): up to some
    hundred thousand items they all fit.
    """

    name = "multivector"
    Config = MultiVectorConfig

    def __init__(self, config: MultiVectorConfig | None = None, *, dim: int) -> None:
        self.config, self.dim = config or MultiVectorConfig(), dim
        self._clear()

    def _clear(self) -> None:
        self._near = INDEXES.load(self.config.inner)(dim=self.dim)
        # One entry a vector, those of an item side by side: the inner index's id, the item, the vector itself.
        vectors = np.empty((0, self.dim), np.float16 if self.config.half else np.float32)
        self._keep(np.empty(0, np.int64), np.empty(0, np.int64), vectors)
        self._next = 0

    def __len__(self) -> int:
        return len(np.unique(self._items))

    def add(self, ids: Sequence[int] | NDArray[np.integer], vectors: NDArray[np.float32]) -> None:
        """Add items, or replace those that are there (see :class:`~m6rec.indexes.base.Index`).

        Args:
            ids: ``[n]`` distinct.
            vectors: ``[n, dim]``, or ``[n, vectors, dim]`` with zeros behind an item's last.

        Raises:
            DataError: wrong shape, repeated or negative ids, an item of zeros alone, or numbers that are not finite.
        """
        owners, flat = self._flat(ids, vectors)
        self._drop(np.isin(self._items, owners))
        rows = np.arange(self._next, self._next + len(flat))
        self._next += len(flat)
        self._near.add(rows, flat)
        self._keep(
            np.concatenate([self._rows, rows]),
            np.concatenate([self._items, owners]),
            np.concatenate([self._vectors, flat.astype(self._vectors.dtype)]),
        )

    def _flat(
        self, ids: Sequence[int] | NDArray[np.integer], vectors: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the item of every vector that is no padding, and these vectors."""
        cube = _cube(vectors)
        numbers, wide = checked_entries(ids, cube.reshape(len(cube), -1), cube.shape[1] * self.dim)
        cube = wide.reshape(len(numbers), -1, self.dim)
        kept: NDArray[np.bool_] = np.any(cube != 0, axis=-1)
        if not np.any(kept, axis=1).all():
            raise DataError(
                f"got item {numbers[~np.any(kept, axis=1)][0]} without a vector, expected one that is not all zeros"
            )
        return np.repeat(numbers, kept.sum(1)), cube[kept]

    def _keep(self, rows: NDArray[np.int64], items: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        order = np.argsort(items, kind="stable")
        self._rows, self._items, self._vectors = rows[order], items[order], vectors[order]
        self._by_row = np.argsort(self._rows)

    def _drop(self, gone: NDArray[np.bool_]) -> None:
        if gone.any():
            self._near.remove(self._rows[gone])
            self._keep(self._rows[~gone], self._items[~gone], self._vectors[~gone])

    def remove(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        """Remove items; unknown ones are an error and nothing is removed."""
        items = np.asarray(ids, np.int64)
        unknown = items[~np.isin(items, self._items)]
        if len(unknown):
            raise DataError(f"got ids that are not in the index: {unknown[:5].tolist()}; nothing was removed")
        self._drop(np.isin(self._items, items))

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the ``k`` items of the highest MaxSim among those with a vector near one of a query's.

        Args:
            queries: ``[n, dim]``, or ``[n, tokens, dim]`` with zeros as padding.
            k: how many.
        """
        cube = _cube(queries)
        kept: NDArray[np.bool_] = np.any(cube != 0, axis=-1)
        near = self._near.search(checked_queries(cube[kept], self.dim), max(k, self.config.near)).ids
        ends, everybody = np.cumsum([0, *kept.sum(1)]), np.unique(self._items)
        ids = np.full((len(cube), k), -1, dtype=np.int64)
        scores = np.full((len(cube), k), -np.inf, dtype=np.float32)
        for number, (start, stop) in enumerate(itertools.pairwise(ends)):
            items = self._owners(near[start:stop])
            if len(items) < min(k, len(everybody)):  # one item's vectors may be all that is near
                items = everybody
            values = self._maxsim(cube[number][kept[number]], items)
            best = np.argsort(-values, kind="stable")[:k]
            ids[number, : len(best)], scores[number, : len(best)] = items[best], values[best]
        return Neighbours(ids, scores)

    def _owners(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.searchsorted(self._rows, rows[rows >= 0], sorter=self._by_row)
        owners: NDArray[np.int64] = np.unique(self._items[self._by_row[found]])
        return owners

    def _maxsim(self, query: NDArray[np.float32], items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the exact scores of some items, so many at once as bound the memory."""
        start, stop = (np.searchsorted(self._items, items, side) for side in ("left", "right"))  # type: ignore[call-overload]
        values = np.empty(len(items), dtype=np.float32)
        asked, most = torch.from_numpy(query), int((stop - start).max(initial=1))
        step = max(1, VECTORS_AT_ONCE // most)
        for first in range(0, len(items), step):
            chunk = slice(first, first + step)
            places = start[chunk, None] + np.arange(most)
            keep = places < stop[chunk, None]
            documents = torch.from_numpy(self._vectors[np.where(keep, places, 0)]).float()
            values[chunk] = best_matches(asked, documents, torch.from_numpy(keep)).sum(0).numpy()
        return values

    def save(self, folder: Path) -> None:
        """Write vectors and their items into ``folder``."""
        write(folder, self.name, plain(self.config), self._items, self._vectors)

    def load(self, folder: Path) -> None:
        """Replace what is held by the index in ``folder``: this one's, or another kind's, of one vector an item."""
        items, vectors = read(folder, self.dim)
        self._clear()
        rows = np.arange(len(items))
        self._near.add(rows, vectors)
        self._next = len(items)
        self._keep(rows, items, vectors.astype(self._vectors.dtype))


def _cube(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``[n, vectors, dim]``, whether there are several vectors or one.

    Raises:
        DataError: of any other shape.
    """
    array = np.asarray(vectors, np.float32)
    if array.ndim not in (2, 3):
        raise DataError(f"got vectors of shape {array.shape}, expected (n, dim) or (n, vectors, dim)")
    return array[:, None] if array.ndim == 2 else array
