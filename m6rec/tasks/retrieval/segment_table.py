"""Every text that an event can stand for, numbered: the catalogue's items first, then the log's searches.

Knows the dataset and the words; no model.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Histories
from m6rec.data.store import Dataset


@dataclass(frozen=True)
class SegmentTable:
    """Which segment each event stands for.

    Args:
        num_items: segments below this are items.
        searches: the words of segments from there on.
        by_row: ``[num_rows]`` int64 segment of each row of the interactions table; -1 = nothing to read.
    """

    num_items: int
    searches: list[str]
    by_row: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, histories: Histories) -> "SegmentTable":
        """Number the items of ``dataset`` and the searches of ``histories`` (what may be known before the test)."""
        num_items = len(dataset.items)
        by_row = np.full(len(dataset.interactions), -1, dtype=np.int64)
        rows = _rows(histories)
        by_row[rows] = histories.items
        without_item = rows[histories.items < 0]
        words: dict[str, int] = {}
        if len(without_item):
            queries = dataset.interactions.select(without_item)["query"][:]
            by_row[without_item] = [
                words.setdefault(query, num_items + len(words)) if query else -1 for query in queries
            ]
        return cls(num_items, list(words), by_row)

    def readable(self, histories: Histories) -> tuple[Histories, NDArray[np.int64]]:
        """Return ``histories`` without events that have no text, and each left event's segment."""
        segments = self.by_row[_rows(histories)]
        keep = segments >= 0
        return (histories, segments) if keep.all() else (histories.select(keep), segments[keep])


def _rows(histories: Histories) -> NDArray[np.int64]:
    return histories.rows if histories.rows is not None else np.arange(histories.num_events)
