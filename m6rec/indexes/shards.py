"""A catalogue too large for one index in memory: shards on disk, searched one at a time and merged.

Knows no search method: every shard is an index of the shelf, and can be opened as one.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError, RunError
from m6rec.indexes import INDEXES
from m6rec.indexes.base import Index, Neighbours


class Shards:
    """Shards of one catalogue; at most one of them is in memory.

    Args:
        folder: holds ``shard-00000``, ``shard-00001``, ..., each an index that was saved.
        dim: size of a vector.
        index: name on the indexes shelf that opens each.
    """

    def __init__(self, folder: Path, dim: int, index: str = "faiss") -> None:
        self.folder, self.dim, self.index = Path(folder), dim, index

    @classmethod
    def write(
        cls,
        folder: Path,
        parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
        dim: int,
        index: str = "faiss",
    ) -> "Shards":
        """Write each part (ids, vectors) as a shard, in place of those that are there.

        Parts may come from a stream; their ids must be disjoint.

        Raises:
            DataError: two parts hold one id, or a part is no index.
        """
        shards, met = cls(folder, dim, index), np.empty(0, np.int64)
        for former in shards.folder.glob("shard-*"):
            shutil.rmtree(former)
        for number, (ids, vectors) in enumerate(parts):
            if len(twice := np.intersect1d(met, ids)):
                raise DataError(f"shard {number} holds ids of earlier ones: {twice[:5].tolist()}; keep shards disjoint")
            met = np.concatenate([met, ids])
            shard = shards._empty()
            shard.add(ids, vectors)
            shard.save(shards.folder / f"shard-{number:05d}")
        return shards

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """Return the ``k`` nearest ids of each query over all shards.

        Raises:
            RunError: there are no shards, or one is broken.
        """
        best: Neighbours | None = None
        for shard in self._opened():
            found = shard.search(queries, k)
            best = found if best is None else merge([best, found], k)
        if best is None:
            raise RunError(f"{self.folder} holds no shards; write them with Shards.write")
        return best

    def _opened(self) -> Iterator[Index]:
        for folder in sorted(self.folder.glob("shard-*")):
            shard = self._empty()
            shard.load(folder)
            yield shard

    def _empty(self) -> Index:
        made: Index = INDEXES.load(self.index)(dim=self.dim)
        return made


def merge(found: Sequence[Neighbours], k: int) -> Neighbours:
    """Return the ``k`` best of what searches of disjoint ids have found; equal scores come by ascending id.

    >>> parts = [Neighbours(np.array([[4, 7]]), np.array([[3.0, 1.0]])), Neighbours(np.array([[2]]), np.array([[2.0]]))]
    >>> merge(parts, 2).ids.tolist()
    [[4, 2]]
    """
    ids = np.concatenate([part.ids for part in found], axis=1)
    scores = np.concatenate([part.scores for part in found], axis=1)
    last = np.where(ids < 0, np.iinfo(np.int64).max, ids)
    order = np.lexsort((last, -scores), axis=1)[:, :k]
    return Neighbours(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))
