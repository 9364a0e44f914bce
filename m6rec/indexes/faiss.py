"""Search by faiss: flat, or a small-world graph for large catalogues. Needs the extra `index`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.config import plain
from m6rec.errors import DataError, needs
from m6rec.indexes.base import Neighbours, checked_entries, checked_queries
from m6rec.indexes.storage import read, write


@dataclass(frozen=True)
class FaissConfig:
    """Settings of :class:`FaissIndex`."""

    kind: Literal["flat", "hnsw"] = "flat"
    """Exact, or a hierarchical navigable small world: much faster on millions of items, and approximate."""
    links: int = 32
    """Links per vector in the graph; changes results of ``hnsw``."""
    build_effort: int = 200
    """Candidates looked at when a vector is added; changes results of ``hnsw``."""
    search_effort: int = 128
    """Candidates looked at in a search; changes results of ``hnsw``."""


class FaissIndex:
    """Nearest items by faiss.

    A graph cannot forget, so removed and replaced vectors stay as waypoints that no search returns; when they outnumber
    the living, the index is built again from these.

    **Source:** Douze et al., The faiss library, 2024; Malkov and Yashunin, Efficient and robust approximate nearest
    neighbor search using hierarchical navigable small world graphs, 2018.
    """

    name = "faiss"
    Config = FaissConfig

    def __init__(self, config: FaissConfig | None = None, *, dim: int) -> None:
        self.config, self.dim = config or FaissConfig(), dim
        self._faiss = _faiss()
        self._clear()

    def _clear(self) -> None:
        # faiss numbers vectors by row; this is the id in each row, -1 where it is dead.
        self._id_of_row = np.empty(0, np.int64)
        if self.config.kind == "flat":
            self._index = self._faiss.IndexFlatIP(self.dim)
            return
        self._index = self._faiss.IndexHNSWFlat(self.dim, self.config.links, self._faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = self.config.build_effort

    def _living(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._id_of_row >= 0)

    def __len__(self) -> int:
        return len(self._living())

    def add(self, ids: Sequence[int] | NDArray[np.integer], vectors: NDArray[np.float32]) -> None:
        """Add vectors, or replace those of ids that are there (see :class:`~m6rec.indexes.base.Index`)."""
        new, rows = checked_entries(ids, vectors, self.dim)
        self._id_of_row[np.isin(self._id_of_row, new)] = -1
        self._index.add(rows)
        self._id_of_row = np.concatenate([self._id_of_row, new])
        self._compact()

    def remove(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        """Remove ids; unknown ones are an error and nothing is removed."""
        gone = np.asarray(ids, np.int64)
        unknown = gone[~np.isin(gone, self._id_of_row) | (gone < 0)]
        if len(unknown):
            raise DataError(f"got ids that are not in the index: {unknown[:5].tolist()}; nothing was removed")
        self._id_of_row[np.isin(self._id_of_row, gone)] = -1
        self._compact()

    def _compact(self) -> None:
        if 2 * len(self) < len(self._id_of_row):
            self._fill(*self._entries())

    def _entries(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        living = self._living()
        if not len(living):
            return living, np.empty((0, self.dim), np.float32)
        return self._id_of_row[living], self._index.reconstruct_batch(living)

    def _fill(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        self._clear()
        if len(ids):
            self.add(ids, vectors)

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the ``k`` nearest ids of each query; with ``hnsw`` perhaps not all of the nearest."""
        rows = checked_queries(queries, self.dim)
        if not len(self) or not len(rows):
            return Neighbours(np.full((len(rows), k), -1), np.full((len(rows), k), -np.inf, np.float32))
        living = self._living()
        # The selector reads the array in place: it must stay alive during the search.
        selector = self._faiss.IDSelectorBatch(living) if len(living) < len(self._id_of_row) else None
        if self.config.kind == "flat":
            parameters = self._faiss.SearchParameters(sel=selector)
        else:
            effort = max(k, self.config.search_effort)
            parameters = self._faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
        scores, places = self._index.search(rows, k, params=parameters)
        ids = np.where(places < 0, -1, self._id_of_row[places])
        return Neighbours(ids, np.where(places < 0, -np.inf, scores).astype(np.float32))

    def save(self, folder: Path) -> None:
        """Write vectors and ids into ``folder``."""
        write(folder, self.name, plain(self.config), *self._entries())

    def load(self, folder: Path) -> None:
        """Replace what is held by the index in ``folder`` (of any kind); a graph is built anew."""
        self._fill(*read(folder, self.dim))


def _faiss() -> Any:
    with needs("index"):
        import faiss
    return faiss
