"""Exact search by matrix product. It knows no approximation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m6rec.config import plain
from m6rec.errors import DataError
from m6rec.indexes.base import Neighbours, checked_entries, checked_queries
from m6rec.indexes.storage import read, write


@dataclass(frozen=True)
class ExactConfig:
    """Settings of :class:`ExactIndex`."""

    scores_at_once: int = 1 << 24
    """Inner products held at once (64 MB); speed and memory only."""


class ExactIndex:
    """Every inner product, then the top: right up to some million items.

    **Source:** brute force; equal inner products come in ascending id order.
    """

    name = "exact"
    Config = ExactConfig

    def __init__(self, config: ExactConfig | None = None, *, dim: int) -> None:
        self.config, self.dim = config or ExactConfig(), dim
        self._ids = np.empty(0, np.int64)
        self._vectors = np.empty((0, dim), np.float32)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[int] | NDArray[np.integer], vectors: NDArray[np.float32]) -> None:
        """Add vectors, or replace those of ids that are there (see :class:`~m6rec.indexes.base.Index`)."""
        new, rows = checked_entries(ids, vectors, self.dim)
        stay = ~np.isin(self._ids, new)
        together = np.concatenate([self._ids[stay], new])
        order = np.argsort(together)
        self._ids, self._vectors = together[order], np.concatenate([self._vectors[stay], rows])[order]

    def remove(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        """Remove ids; unknown ones are an error and nothing is removed."""
        gone = np.asarray(ids, np.int64)
        unknown = gone[~np.isin(gone, self._ids)]
        if len(unknown):
            raise DataError(f"got ids that are not in the index: {unknown[:5].tolist()}; nothing was removed")
        stay = ~np.isin(self._ids, gone)
        self._ids, self._vectors = self._ids[stay], self._vectors[stay]

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the ``k`` nearest ids of each query, exactly."""
        rows = checked_queries(queries, self.dim)
        found = min(k, len(self))
        ids = np.full((len(rows), k), -1, dtype=np.int64)
        scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
        table = torch.from_numpy(self._vectors)
        step = max(1, self.config.scores_at_once // max(1, len(self)))
        for start in range(0, len(rows) if found else 0, step):
            products = torch.from_numpy(rows[start : start + step]) @ table.T
            best, places = products.topk(found, dim=1)
            # topk leaves equal scores in any order: sort by id, then stably by score.
            by_id = places.sort(dim=1).indices
            best, places = best.gather(1, by_id), places.gather(1, by_id)
            order = best.sort(dim=1, descending=True, stable=True).indices
            scores[start : start + step, :found] = best.gather(1, order).numpy()
            ids[start : start + step, :found] = self._ids[places.gather(1, order).numpy()]
        return Neighbours(ids, scores)

    def save(self, folder: Path) -> None:
        """Write vectors and ids into ``folder``."""
        write(folder, self.name, plain(self.config), self._ids, self._vectors)

    def load(self, folder: Path) -> None:
        """Replace what is held by the index in ``folder`` (of any kind)."""
        ids, vectors = read(folder, self.dim)
        self._ids, self._vectors = np.empty(0, np.int64), np.empty((0, self.dim), np.float32)
        self.add(ids, vectors)
