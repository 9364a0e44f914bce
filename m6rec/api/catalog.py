"""The items on offer: an index over them, and the vectors of users who ask it. Knows no other task than retrieval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m6rec.assemble import Run
from m6rec.errors import DataError, RunError
from m6rec.indexes import INDEXES
from m6rec.requests import Event, with_record
from m6rec.tasks.item_space import ItemSpace, last_segments
from m6rec.tasks.retrieval import Retrieval
from m6rec.tasks.windows import Window, gap_buckets


class Catalog:
    """The items on offer, and the index over them.

    Args:
        run: whose; only a retrieval run's can be searched and changed.
        index: name on the indexes shelf.
    """

    def __init__(self, run: Run, index: str) -> None:
        self.run, self._index_name = run, index
        self._index: Any = None

    def __len__(self) -> int:
        return int(self.run.task.catalogue.offered.sum())

    @property
    def retrieval(self) -> Retrieval:
        """The task whose items these are.

        Raises:
            RunError: it is none that retrieves.
        """
        if isinstance(self.run.task, Retrieval):
            return self.run.task
        raise RunError(
            f"{self.run.folder} holds the task {self.run.card['task']!r}; recommending needs a retrieval run"
        )

    def nearest(
        self, events: list[dict[str, Any]], k: int, excluded: frozenset[int] = frozenset()
    ) -> list[tuple[int, float]]:
        """Return positions and scores of the ``k`` best items for a history.

        Args:
            events: as :func:`m6rec.requests.read_events` gives them.
            k: how many.
            excluded: positions that are not wanted.
        """
        places, scores = self.search(self.user(events), _places(events), k + len(excluded))
        found = zip(places, scores, strict=True)
        return [(place, score) for place, score in found if place not in excluded][:k]

    def score(self, events: list[dict[str, Any]], place: int) -> float:
        """Return the score of one item for a history, as :meth:`nearest` has it."""
        user, space = self.user(events), self.space
        followed = space.cooccurrence * space.followers([_places(events)])[0]
        return float(self._vectors[place] @ user.cpu().numpy() + followed[place])

    def search(self, user: torch.Tensor, history: NDArray[np.int64], k: int) -> tuple[list[int], list[float]]:
        """Return positions and scores of the ``k`` best items on offer.

        The index finds the best inner products; items that followed the history in others' come on top. Counted links
        only ever add to a score, so that the best of both lists together are the best of the catalogue.
        """
        task = self.retrieval
        if self._index is None:
            self._build()
        found = self._index.search(user[None].cpu().numpy(), min(k, len(self)))
        followed = self._space.cooccurrence * self._space.followers([history])[0]
        places = np.union1d(found.ids[0][found.ids[0] >= 0], np.flatnonzero((followed > 0) & task.catalogue.offered))
        scores = self._vectors[places] @ user.cpu().numpy() + followed[places]
        best = np.argsort(-scores, kind="stable")[:k]
        return places[best].tolist(), scores[best].tolist()

    @property
    def space(self) -> ItemSpace:
        """The catalogue as vectors."""
        if self._index is None:
            self._build()
        return self._space

    def _build(self) -> None:
        task = self.retrieval
        self._space = task.space()
        self._vectors = self._space.vectors.cpu().numpy()
        places = np.flatnonzero(task.catalogue.offered)
        self._index = INDEXES.load(self._index_name)(dim=self._vectors.shape[1])
        self._index.add(places, self._vectors[places])

    def add(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Offer new items, known by their text alone; the next request can return them.

        Args:
            items: mappings with ``id`` and the item's fields (``title``, ``brand``, ``category``, ...).

        Raises:
            DataError: an item without id or text, or an id that is taken.
        """
        task = self.retrieval
        missing = [item for item in items if item.get("id") is None]
        if missing:
            raise DataError(f"got an item without `id`: {dict(missing[0])!r}")
        records = [{key: value for key, value in item.items() if key != "id"} for item in items]
        texts = [task.renderer.item(record) for record in records]
        unnamed = task.renderer.item({})
        empty = [item["id"] for item, text in zip(items, texts, strict=True) if text == unnamed]
        if empty:
            raise DataError(f"got items without any text: {', '.join(map(str, empty[:5]))}; give a title")
        vectors = task.encoder.encode(self.run.backbone, task.tokenizer.texts(texts))
        task.catalogue.add([str(item["id"]) for item in items], records, texts, vectors)
        # Every new item's boost depends on how many there are, so the index is made anew at the next request.
        self._index = None

    def remove(self, ids: Sequence[str]) -> None:
        """Stop offering items.

        Raises:
            DataError: an unknown id; nothing is removed then.
        """
        places = self.retrieval.catalogue.remove([str(key) for key in ids])
        if self._index is not None:
            self._index.remove(np.array(places))

    def user(self, events: list[dict[str, Any]]) -> torch.Tensor:
        """Return the user's vector, as the index wants it."""
        task, backbone = self.retrieval, self.run.backbone
        # Before the cut: the first event that is read has a gap too.
        gaps = _gaps(events)[-task.config.max_events :]
        events = events[-task.config.max_events :]
        texts = [_words(event, task) for event in events]
        segments = task.read_events([event["place"] for event in events], texts, backbone)
        verbs = {name: number for number, name in enumerate(task.verb_names, start=1)}
        window = Window(
            user=0,
            segments=np.arange(len(events)),
            verbs=np.array([verbs.get(str(event.get("verb")), 0) for event in events], dtype=np.int64),
            gaps=gaps,
            events=np.arange(len(events)),
        )
        records = [with_record(task.catalogue, event) for event in events]
        state = task.states(backbone, [window], segments, records.__getitem__)
        space = self.space
        last = last_segments([window.segments], space.config.window)
        return space.users(state, space.profiles(last.to(state.device), segments.texts))[0]


def _gaps(events: list[dict[str, Any]]) -> NDArray[np.int64]:
    times = [event.get("time") for event in events]
    if None in times:
        return np.zeros(len(events), dtype=np.int64)
    return gap_buckets(np.array(times, dtype=np.int64))


def _places(events: list[dict[str, Any]]) -> NDArray[np.int64]:
    return np.array([-1 if event["place"] is None else event["place"] for event in events], dtype=np.int64)


def _words(event: Event, task: Retrieval) -> str:
    return task.renderer.event(with_record(task.catalogue, event))[1]
