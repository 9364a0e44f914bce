"""What retrieval is trained on and scored over: windows, segments, and the scorer that evaluation calls.

Knows no loss.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Histories, Queries
from m6rec.tasks.segment_table import SegmentTable
from m6rec.tasks.windows import Window, Windows, window


class TrainingMaterial:
    """Training events as windows of segments.

    Args:
        event_record: row of the interactions table -> the event's record.
        table: segment of each row.
        train: readable training events.
        segments: ``[num_events]`` segment of each.
        max_events: longest window that is read.
        context_events: events repeated from the window before.

    Attributes:
        tokens: token ids of every segment, once encoded.
        search_vectors: text vectors of the searches, once encoded.
    """

    def __init__(
        self,
        event_record: Callable[[int], Mapping[str, Any]],
        table: SegmentTable,
        train: Histories,
        segments: NDArray[np.int64],
        max_events: int,
        context_events: int,
    ) -> None:
        self._event_record, self.table, self.train = event_record, table, train
        self.windows = Windows(train, segments, max_events + 1, context_events)
        self.max_events = max_events
        self.tokens: list[list[int]] | None = None
        self.search_vectors: Tensor | None = None
        counts = np.bincount(train.items[train.items >= 0], minlength=table.num_items)
        self.target_counts = torch.from_numpy(counts.astype(np.float32))

    @property
    def num_segments(self) -> int:
        """Items and searches together."""
        return self.table.num_items + len(self.table.searches)

    def record(self, event: int) -> Mapping[str, Any]:
        """Return the record of a training event by its number."""
        return self.record_of(self.train, event)

    def record_of(self, histories: Histories, event: int) -> Mapping[str, Any]:
        """Return the record of an event of ``histories`` by its number there."""
        return self._event_record(int(histories.rows[event]) if histories.rows is not None else event)


class Retriever(Protocol):
    """What the scorer needs of a retrieval task."""

    @property
    def material(self) -> TrainingMaterial:
        """What the task was built over."""

    def segment_vectors(self) -> Tensor:
        """Return the vector of every segment."""

    def items(self) -> Tensor:
        """Return the normalised vector of every item."""

    def users(
        self, backbone: Backbone, windows: list[Window], vectors: Tensor, records: Callable[[int], Any] | None
    ) -> Tensor:
        """Return the normalised user vector after each window."""


class RetrievalScorer:
    """Scores the whole catalogue for evaluation; vectors are computed once.

    Args:
        task: trained, over the dataset that is evaluated.
        backbone: tuned.
        name: row name in reports.
        batch_size: users at a time; speed and memory only.
    """

    def __init__(self, task: Retriever, backbone: Backbone, name: str = "ours", batch_size: int = 256) -> None:
        self.task, self.backbone, self.name, self.batch_size = task, backbone, name, batch_size
        self._segments, self._items = task.segment_vectors(), task.items()
        self._history: Histories | None = None

    @torch.no_grad()
    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` cosine scores from each query's history."""
        material = self.task.material
        if queries.history is not self._history:
            self._history, self._readable = queries.history, material.table.readable(queries.history)
        history, segments = self._readable
        windows = []
        for user in queries.users.tolist():
            owned = history.of(user)
            start = max(owned.start, owned.stop - material.max_events)
            windows.append(window(history, segments, user, start, owned.stop))
        # Similar lengths together: less padding, the same numbers.
        order = sorted(range(len(windows)), key=lambda number: len(windows[number]))
        scores = np.empty((len(windows), len(self._items)), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            users = self.task.users(
                self.backbone,
                [windows[number] for number in group],
                self._segments,
                lambda event: material.record_of(history, event),
            )
            scores[group] = (users @ self._items.T).cpu().numpy()
        return scores


def excluded_columns(
    pairs: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]], columns: Int[Tensor, " columns"], positions: int
) -> Bool[Tensor, "positions columns"]:
    """Return (position, item) pairs as a mask over the items that are columns of a batch (``columns`` is sorted)."""
    rows, items = pairs
    places = torch.searchsorted(columns, items).clamp(max=len(columns) - 1)
    present = columns[places] == items
    mask = torch.zeros(positions, len(columns), dtype=torch.bool, device=columns.device)
    mask[rows[present], places[present]] = True
    return mask


def log_share(counts: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """Return the log of each item's smoothed share of the targets."""
    return torch.log((counts + 1) / (counts.sum() + len(counts)))
