"""Text in, text out: a run as a recommender for anybody's history. Knows no file format of a dataset and no screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m6rec.assemble import Run, open_run
from m6rec.errors import ConfigError, DataError, RunError
from m6rec.indexes import INDEXES
from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.ranking import Ranking
from m6rec.tasks.retrieval import Retrieval
from m6rec.tasks.windows import Window, gap_buckets
from m6rec.text.prompt import UserText

Event = Mapping[str, Any]
History = str | Sequence[Event | str]


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Args:
        id: the catalogue's own key.
        title: its title, the key where it has none.
        score: higher is better; comparable within one answer only.
    """

    id: str
    title: str
    score: float

    def __str__(self) -> str:
        return f"{self.title}  ({self.score:.3f})"


def load(run: str | Path, ranker: str | Path | None = None, index: str = "exact") -> "Recommender":
    """Open a run as a recommender.

    Args:
        run: folder of a retrieval run, or of a ranking run.
        ranker: folder of a ranking run that orders what the first one retrieves.
        index: name on the indexes shelf; speed only.

    Raises:
        RunError: a folder is no finished run, or the pair does not fit.
    """
    return Recommender(open_run(run), open_run(ranker) if ranker is not None else None, index)


class Recommender:
    """Answers for one request at a time; nothing is keyed by a user that training has seen.

    A history is a text of titles separated by ``;``, or a list of events: a string (a title or item id), or a mapping
    with ``item`` (id, title, or a mapping of the item's fields) or ``query``, and optionally ``verb``, ``time`` (Unix
    seconds) and ``value``. Items that the catalogue does not hold are read by their text.

    Attributes:
        catalog: items on offer; ``add`` and ``remove`` need no retraining.
    """

    def __init__(self, run: Run, ranker: Run | None = None, index: str = "exact") -> None:
        self.run, self.ranker = run, ranker
        if isinstance(run.task, Ranking) and ranker is None:
            self.ranker = run
        if ranker is not None and not isinstance(ranker.task, Ranking):
            raise RunError(f"{ranker.folder} holds the task {ranker.card['task']!r}, expected a ranking run as ranker")
        self.catalog = Catalog(self, index)

    @property
    def _retrieval(self) -> Retrieval:
        if isinstance(self.run.task, Retrieval):
            return self.run.task
        raise RunError(
            f"{self.run.folder} holds the task {self.run.card['task']!r}; recommending needs a retrieval run"
        )

    def recommend(self, history: History, k: int = 10, *, exclude_history: bool = True) -> list[Recommendation]:
        """Return the ``k`` best items for a history; retrieved, and ordered by the ranker where there is one.

        Args:
            history: what the user did, oldest first; may be empty.
            k: how many.
            exclude_history: never recommend what the history holds.

        Raises:
            DataError: an event that cannot be read.
        """
        if self.ranker is None:
            return self.retrieve(history, k, exclude_history=exclude_history)
        found = self.retrieve(history, max(5 * k, 50), exclude_history=exclude_history)
        return self.rank(history, [item.id for item in found])[:k]

    def retrieve(self, history: History, k: int = 100, *, exclude_history: bool = True) -> list[Recommendation]:
        """Return the ``k`` nearest items of the catalogue, best first."""
        if k < 1:
            raise ConfigError(f"k: got {k}, expected 1 or more")
        events = self._events(history)
        met = {event["place"] for event in events if event["place"] is not None} if exclude_history else set()
        places, scores = self.catalog.search(self._user(events), k + len(met))
        chosen = [(place, score) for place, score in zip(places, scores, strict=True) if place not in met]
        return [self._recommendation(place, score) for place, score in chosen[:k]]

    def rank(self, history: History, candidates: Sequence[str | Event]) -> list[Recommendation]:
        """Return candidates (ids, titles, or mappings of an item's fields) by the ranker's probability of a yes.

        Raises:
            RunError: there is no ranking run.
            DataError: a candidate that is neither known nor described.
        """
        if self.ranker is None:
            raise RunError("ranking needs a ranking run: m6rec.load(RUN, ranker=RANKING_RUN)")
        task, catalogue = self.ranker.task, self.ranker.task.catalogue
        items = [_item(catalogue, candidate) for candidate in candidates]
        events = [_with_record(catalogue, event) for event in self._events(history)]
        scores = task.rank(
            self.ranker.backbone,
            UserText(events=events),
            [record for _, record in items],
            [place for place, _ in items],
        )
        order = np.argsort(-scores, kind="stable")
        return [_named(*items[index], catalogue, float(scores[index])) for index in order]

    def _recommendation(self, place: int, score: float) -> Recommendation:
        catalogue = self._retrieval.catalogue
        return _named(place, catalogue.records[place], catalogue, score)

    def _events(self, history: History) -> list[dict[str, Any]]:
        """Return events as mappings with the item's ``place`` in the catalogue (or ``None``)."""
        catalogue = self.run.task.catalogue
        parts: Sequence[Event | str] = history.split(";") if isinstance(history, str) else history
        events = []
        for number, part in enumerate(parts, start=1):
            if isinstance(part, str):
                if part.strip():
                    events.append(_event({"item": part.strip()}, catalogue))
            elif isinstance(part, Mapping) and (part.get("item") is not None or part.get("query") or part.get("title")):
                events.append(_event(part, catalogue))
            else:
                raise DataError(
                    f"event {number} of the history: got {part!r}, expected a title, an item id, or a mapping with "
                    "`item`, `title` or `query`"
                )
        return events

    def _user(self, events: list[dict[str, Any]]) -> torch.Tensor:
        task, backbone = self._retrieval, self.run.backbone
        events = events[-task.config.max_events :]
        texts = [_words(event, task) for event in events]
        vectors = task.read_events([event["place"] for event in events], texts, backbone)
        verbs = {name: number for number, name in enumerate(task.verb_names, start=1)}
        times = [event.get("time") for event in events]
        gaps = gap_buckets(np.array(times, dtype=np.int64)) if events and None not in times else None
        window = Window(
            user=0,
            segments=np.arange(len(events)),
            verbs=np.array([verbs.get(str(event.get("verb")), 0) for event in events], dtype=np.int64),
            gaps=np.zeros(len(events), dtype=np.int64) if gaps is None else gaps,
            events=np.arange(len(events)),
        )
        return task.users(backbone, [window], vectors, lambda number: _with_record(task.catalogue, events[number]))[0]


class Catalog:
    """The items on offer, and the index over them.

    Args:
        recommender: whose.
        index: name on the indexes shelf.
    """

    def __init__(self, recommender: Recommender, index: str) -> None:
        self._recommender, self._index_name = recommender, index
        self._index: Any = None

    def __len__(self) -> int:
        return int(self._recommender.run.task.catalogue.offered.sum())

    def search(self, user: torch.Tensor, k: int) -> tuple[list[int], list[float]]:
        """Return positions and scores of the ``k`` nearest items on offer."""
        if self._index is None:
            task = self._recommender._retrieval
            self._index = INDEXES.load(self._index_name)()
            places = np.flatnonzero(task.catalogue.offered)
            self._index.add(places, task.items().cpu().numpy()[places])
        ids, scores = self._index.search(user[None].cpu().numpy(), min(k, len(self)))
        found = ids[0] >= 0
        return ids[0][found].tolist(), scores[0][found].tolist()

    def add(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Offer new items, known by their text alone; the next request can return them.

        Args:
            items: mappings with ``id`` and the item's fields (``title``, ``brand``, ``category``, ...).

        Raises:
            DataError: an item without id or text, or an id that is taken.
        """
        recommender = self._recommender
        task = recommender._retrieval
        missing = [item for item in items if item.get("id") is None]
        if missing:
            raise DataError(f"got an item without `id`: {dict(missing[0])!r}")
        records = [{key: value for key, value in item.items() if key != "id"} for item in items]
        texts = [task.renderer.item(record) for record in records]
        vectors = task.encoder.encode(recommender.run.backbone, task.tokenizer.texts(texts))
        first = len(task.catalogue)
        task.catalogue.add([str(item["id"]) for item in items], records, texts, vectors)
        if self._index is not None:
            places = np.arange(first, len(task.catalogue))
            self._index.add(places, task.items().cpu().numpy()[places])

    def remove(self, ids: Sequence[str]) -> None:
        """Stop offering items.

        Raises:
            DataError: an unknown id; nothing is removed then.
        """
        places = self._recommender._retrieval.catalogue.remove([str(key) for key in ids])
        if self._index is not None:
            self._index.remove(np.array(places))


def _event(event: Event, catalogue: Catalogue) -> dict[str, Any]:
    item = event.get("item", event if event.get("title") else None)
    place = catalogue.find(str(item)) if item is not None and not isinstance(item, Mapping) else None
    if isinstance(item, Mapping):
        key = item.get("id", item.get("key"))
        place = catalogue.find(str(key)) if key is not None else catalogue.find(str(item.get("title")))
        item = {name: value for name, value in item.items() if name not in ("verb", "time", "value", "query")}
    elif item is not None:
        item = {"title": str(item)}
    kept = {name: event[name] for name in ("verb", "time", "value", "query") if event.get(name) is not None}
    return {**kept, **({"item": item} if item is not None else {}), "place": place}


def _with_record(catalogue: Catalogue, event: Event) -> dict[str, Any]:
    place = event["place"]
    record = {**catalogue.records[place], "key": catalogue.keys[place]} if place is not None else event.get("item")
    kept = {name: value for name, value in event.items() if name not in ("place", "item")}
    return kept if record is None else {**kept, "item": record}


def _words(event: Event, task: Retrieval) -> str:
    return task.renderer.event(_with_record(task.catalogue, event))[1]


def _item(catalogue: Catalogue, candidate: str | Event) -> tuple[int | None, Mapping[str, Any]]:
    if isinstance(candidate, Mapping):
        key = candidate.get("id", candidate.get("key"))
        place = catalogue.find(str(key)) if key is not None else None
        record = catalogue.records[place] if place is not None else candidate
        if not task_text(record):
            raise DataError(f"got a candidate that is neither known nor described: {dict(candidate)!r}; give a title")
        return place, record
    place = catalogue.find(candidate)
    return (place, catalogue.records[place]) if place is not None else (None, {"title": candidate})


def task_text(record: Mapping[str, Any]) -> str:
    """Return a record's title, or anything that it says in words."""
    return str(record.get("title") or " ".join(value for value in record.values() if isinstance(value, str)))


def _named(place: int | None, record: Mapping[str, Any], catalogue: Catalogue, score: float) -> Recommendation:
    key = catalogue.keys[place] if place is not None else str(record.get("id", record.get("title")))
    return Recommendation(key, str(record.get("title") or key), float(score))
