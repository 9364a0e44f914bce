"""What retrieval is trained on and scored over: windows, segments, and the scorer that evaluation calls.

Knows no loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.data.histories import Histories, Queries
from m6rec.tasks.retrieval.item_space import last_segments
from m6rec.tasks.retrieval.segment_table import SegmentTable
from m6rec.tasks.retrieval.windows import Window, Windows, window

if TYPE_CHECKING:
    from m6rec.tasks.retrieval.task import Retrieval


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


@dataclass(frozen=True)
class Segments:
    """Vectors of segments, for inference.

    Args:
        towers: ``[segments, dim]`` the item tower's vectors.
        texts: ``[segments, width]`` (whitened) text vectors of length one.
        ids: ``[segments]`` number of the residual, -1 = none.
    """

    towers: Float[Tensor, "segments dim"]
    texts: Float[Tensor, "segments width"]
    ids: Int[Tensor, " segments"]


class QueryWindows:
    """The newest events of whoever asks, as windows.

    Args:
        material: of the task that reads them.
    """

    def __init__(self, material: TrainingMaterial) -> None:
        self.material = material
        self._history: Histories | None = None

    def of(self, queries: Queries) -> tuple[list[Window], list[NDArray[np.int64]]]:
        """Return each query's window and the items in it."""
        material = self.material
        if queries.history is not self._history:
            self._history, self._readable = queries.history, material.table.readable(queries.history)
        history, segments = self._readable
        windows, items = [], []
        for user in queries.users.tolist():
            owned = history.of(user)
            start = max(owned.start, owned.stop - material.max_events)
            windows.append(window(history, segments, user, start, owned.stop))
            items.append(history.items[start : owned.stop].astype(np.int64))
        return windows, items

    def record(self, event: int) -> Mapping[str, Any]:
        """Return the record of an event in one of the windows."""
        return self.material.record_of(self._readable[0], event)


class RetrievalScorer:
    """Scores the whole catalogue for evaluation; item vectors are computed once.

    Args:
        task: a trained retrieval task, over the dataset that is evaluated.
        backbone: tuned.
        name: row name in reports.
        batch_size: users at a time; speed and memory only.
    """

    def __init__(self, task: "Retrieval", backbone: Backbone, name: str = "ours", batch_size: int = 256) -> None:
        self.task, self.backbone, self.name, self.batch_size = task, backbone, name, batch_size
        self._segments, self._space = task.segments(), task.space()
        self._asked = QueryWindows(task.material)

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """Return ``[num_queries, num_items]`` scores from each query's history."""
        learnt, followed, alike = self.parts(queries)
        return learnt + np.float32(self._space.cooccurrence) * followed + np.float32(self._space.text) * alike

    @torch.no_grad()
    def parts(self, queries: Queries) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return the learnt score, the co-occurrence and the text likeness, ``[num_queries, num_items]`` each."""
        space = self._space
        windows, histories = self._asked.of(queries)
        last = last_segments([item.segments for item in windows], space.config.window)
        learnt = self._states(windows) @ space.learnt.T / space.temperature + space.boost
        alike = space.profiles(last.to(learnt.device), self._segments.texts) @ space.texts.T
        return learnt.cpu().numpy(), space.followers(histories), alike.cpu().numpy()

    def _states(self, windows: list[Window]) -> Tensor:
        """Read similar lengths together: less padding, the same numbers."""
        states = torch.empty(len(windows), self.task.config.dim, device=self._space.learnt.device)
        order = sorted(range(len(windows)), key=lambda number: len(windows[number]))
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            chosen = [windows[number] for number in group]
            states[group] = self.task.states(self.backbone, chosen, self._segments, self._asked.record)
        return states


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
