"""The items on offer: an index over them, and the vectors of users who ask it. Knows no other task than retrieval."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m6rec.assemble import Run
from m6rec.errors import DataError, RunError
from m6rec.indexes.base import Index
from m6rec.requests import with_record
from m6rec.tasks.retrieval.base import Retriever, Space
from m6rec.tasks.retrieval.windows import Window, gap_buckets


@dataclass(frozen=True)
class Offer:
    """The items on offer at one moment; never changes, so that whoever searches it needs no lock.

    Args:
        space: the catalogue as vectors, items that are no longer on offer among them.
        offered: ``[num_items]`` bool.
        index: over the items that were on offer when it was made.
    """

    space: Space
    offered: NDArray[np.bool_]
    index: Index

    @classmethod
    def of(cls, task: Retriever, index: str) -> "Offer":
        """Return what a task offers now, with an index of a name on their shelf."""
        space, offered = task.space(), task.catalogue.offered
        return cls(space, offered, space.index(index, np.flatnonzero(offered)))

    def search(
        self, users: torch.Tensor, histories: Sequence[NDArray[np.int64]], counts: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Return positions and scores of each user's best items (see :meth:`Catalog.search`).

        Args:
            users: a row each, as :meth:`Catalog.users` gives them.
            histories: positions of each one's events, oldest first, -1 = no item.
            counts: how many items each one wants.
        """
        queries, num_offered = users.cpu().numpy(), int(self.offered.sum())
        gone = len(self.index) - num_offered
        nearest = self.index.search(queries, min(max(counts), num_offered) + gone).ids
        followed = self.space.followed(histories)
        found = []
        for user, near, bonus, k in zip(users, nearest, followed, counts, strict=True):
            near = near[: k + gone]
            places = np.union1d(near[near >= 0], np.flatnonzero(bonus > 0))
            found.append(self._best(user, places, bonus, k))
        return found

    def order(
        self, user: torch.Tensor, history: NDArray[np.int64], places: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """Return those of some items that are on offer, best first, with the scores that a search gives them."""
        followed = self.space.followed([history])[0]
        return self._best(user, np.array(places, dtype=np.int64), followed, len(places))

    def _best(
        self, user: torch.Tensor, places: NDArray[np.int64], followed: NDArray[np.float32], k: int
    ) -> tuple[list[int], list[float]]:
        places = places[self.offered[places]]
        scores = self.space.scores(user, places) + followed[places]
        best = np.argsort(-scores, kind="stable")[:k]
        return places[best].tolist(), scores[best].tolist()


class Catalog:
    """The items on offer, and the index over them.

    Any number of threads may search while one changes items: each search sees them all as they were before, or after.

    Args:
        run: whose; only a retrieval run's can be searched and changed.
        index: name on the indexes shelf.

    Attributes:
        revision: grows with every change, once it can be seen; what was found at one is found until the next.
    """

    def __init__(self, run: Run, index: str) -> None:
        self.run, self._index_name = run, index
        self._offer: Offer | None = None
        self._changing = False
        self.revision = 0

    def __len__(self) -> int:
        return int(self.run.task.catalogue.offered.sum())

    @property
    def retrieval(self) -> Retriever:
        """The task whose items these are.

        Raises:
            RunError: it is none that retrieves.
        """
        if isinstance(self.run.task, Retriever):
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
        user, offer = self.user(events), self.offer
        followed = offer.space.followed([_places(events)])[0]
        return float(offer.space.scores(user, np.array([place]))[0] + followed[place])

    def search(self, user: torch.Tensor, history: NDArray[np.int64], k: int) -> tuple[list[int], list[float]]:
        """Return positions and scores of the ``k`` best items on offer.

        The index finds the best inner products; items that followed the history in others' come on top. Counted links
        only ever add to a score, so that the best of both lists together are the best of the catalogue.
        """
        return self.offer.search(user[None], [history], [k])[0]

    @property
    def offer(self) -> Offer:
        """The items on offer now, indexed."""
        offer = self._offer
        if offer is None:
            self._offer = offer = Offer.of(self.retrieval, self._index_name)
        return offer

    @property
    def space(self) -> Space:
        """The catalogue as vectors."""
        return self.offer.space

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change items while others search: the index is made anew once, at the end, beside the one that they ask."""
        self._changing = True
        try:
            yield
        finally:
            self._changing = False
            self._seen(Offer.of(self.retrieval, self._index_name))

    def _seen(self, offer: Offer | None) -> None:
        self._offer = offer
        self.revision += 1

    def add(self, items: Sequence[Mapping[str, Any]], vectors: torch.Tensor | None = None) -> None:
        """Offer new items, known by their text alone; the next request can return them.

        Args:
            items: mappings with ``id`` and the item's fields (``title``, ``brand``, ``category``, ...).
            vectors: a row each, as the catalogue keeps them, from before; default: their texts are read.

        Raises:
            DataError: an item without id or text, or an id that is taken.
        """
        self._put(items, vectors, self.retrieval.catalogue.add)

    def change(self, items: Sequence[Mapping[str, Any]], vectors: torch.Tensor | None = None) -> None:
        """Give items on offer other words; what training has learnt of each stays with it.

        Args:
            items: as :meth:`add` takes them, each with all its fields.
            vectors: likewise.

        Raises:
            DataError: an item without id or text, or one that is not on offer; nothing is changed then.
        """
        self._put(items, vectors, self.retrieval.catalogue.change)

    def _put(self, items: Sequence[Mapping[str, Any]], vectors: torch.Tensor | None, put: Callable[..., None]) -> None:
        texts = self.texts(items)
        records = [{key: value for key, value in item.items() if key != "id"} for item in items]
        if vectors is None:
            vectors = self.read(items)
        put([str(item["id"]) for item in items], records, texts, vectors)
        if not self._changing:
            # Every new item's boost depends on how many there are, so the index is made anew at the next request.
            self._seen(None)

    def read(self, items: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Return what the backbone makes of items' words, as :meth:`add` and :meth:`change` take it.

        Whoever has millions reads them elsewhere (``m6rec batch --work embed --executor ray``) and hands them in.

        Raises:
            DataError: an item without id or text.
        """
        return self.retrieval.read_items(self.run.backbone, self.texts(items))

    def texts(self, items: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return the words of items as :meth:`add` takes them.

        Raises:
            DataError: an item without id or text.
        """
        render = self.retrieval.renderer.item
        missing = [item for item in items if item.get("id") is None]
        if missing:
            raise DataError(f"got an item without `id`: {dict(missing[0])!r}")
        texts = [render({key: value for key, value in item.items() if key != "id"}) for item in items]
        unnamed = render({})
        empty = [item["id"] for item, text in zip(items, texts, strict=True) if text == unnamed]
        if empty:
            raise DataError(f"got items without any text: {', '.join(map(str, empty[:5]))}; give a title")
        return texts

    def remove(self, ids: Sequence[str]) -> None:
        """Stop offering items.

        Raises:
            DataError: an unknown id; nothing is removed then.
        """
        catalogue = self.retrieval.catalogue
        catalogue.remove([str(key) for key in ids])
        if not self._changing:
            self._seen(self._offer and replace(self._offer, offered=catalogue.offered))

    def user(self, events: list[dict[str, Any]]) -> torch.Tensor:
        """Return the user as the space has one."""
        return self.users([events])[0]

    def users(self, histories: Sequence[list[dict[str, Any]]]) -> torch.Tensor:
        """Return users as the space has them, a row each, read in one pass."""
        task, space = self.retrieval, self.space
        # Before the cut: the first event that is read has a gap too.
        gaps = [_gaps(events)[-task.config.max_events :] for events in histories]
        kept = [events[-task.config.max_events :] for events in histories]
        together = [event for events in kept for event in events]
        starts = np.cumsum([0, *map(len, kept)]).tolist()
        windows = [self._window(events, own, start) for events, own, start in zip(kept, gaps, starts[:-1], strict=True)]
        records = [with_record(task.catalogue, event) for event in together]
        return task.users(self.run.backbone, space, windows, [event["place"] for event in together], records)

    def _window(self, events: list[dict[str, Any]], gaps: NDArray[np.int64], start: int) -> Window:
        verbs = {name: number for number, name in enumerate(self.retrieval.verb_names, start=1)}
        numbers = np.arange(start, start + len(events))
        known = np.array([verbs.get(str(event.get("verb")), 0) for event in events], dtype=np.int64)
        return Window(user=0, segments=numbers, verbs=known, gaps=gaps, events=numbers)


def _gaps(events: list[dict[str, Any]]) -> NDArray[np.int64]:
    times = [event.get("time") for event in events]
    if None in times:
        return np.zeros(len(events), dtype=np.int64)
    return gap_buckets(np.array(times, dtype=np.int64))


def _places(events: list[dict[str, Any]]) -> NDArray[np.int64]:
    return np.array([-1 if event["place"] is None else event["place"] for event in events], dtype=np.int64)
