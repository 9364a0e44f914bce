"""Text in, text out: a run as a recommender for anybody's history. Knows no file format of a dataset and no screen."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m6rec.assemble import Run, open_run, open_runs
from m6rec.backbones.base import Backbone
from m6rec.backbones.scenes import score_in_scenes
from m6rec.data.scenes import SceneConfig, SceneRule
from m6rec.errors import ConfigError, DataError, RunError
from m6rec.hub.transfer import locate, push
from m6rec.indexes import INDEXES
from m6rec.requests import Event, History, Recommendation, named, read_candidate, read_events, with_record
from m6rec.tasks.item_space import ItemSpace, last_segments
from m6rec.tasks.ranking import Ranking
from m6rec.tasks.retrieval import Retrieval
from m6rec.tasks.windows import Window, gap_buckets
from m6rec.text.prompt import UserText


def load(
    run: str | Path, ranker: str | Path | None = None, index: str = "exact", backbone: Backbone | None = None
) -> "Recommender":
    """Open a run as a recommender.

    Runs that were trained on the same weights share one backbone in memory.

    Args:
        run: folder of a retrieval run, or of a ranking run; or its name on the Hub, ``owner/name``.
        ranker: a ranking run that orders what the first one retrieves.
        index: name on the indexes shelf; speed only.
        backbone: a bare one that is in memory already, to open many runs on one.

    Raises:
        RunError: a folder is no finished run, or the pair does not fit.
        HubError: there is no such folder, and the Hub does not give such a run.
    """
    folders = [locate(each) for each in (run, ranker) if each is not None]
    if len(folders) == 1 and backbone is None:
        return Recommender(open_run(folders[0]), None, index)
    first, *second = open_runs(folders, backbone)
    return Recommender(first, second[0] if second else None, index)


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
        if self.ranker is None or k < 1:
            return self.retrieve(history, k, exclude_history=exclude_history)
        found = self._nearest(history, max(5 * k, 50), exclude_history)
        # As records: the ranker's own catalogue may lack what has been added to this one.
        return self.rank(history, [record for record, _ in found])[:k]

    def retrieve(self, history: History, k: int = 100, *, exclude_history: bool = True) -> list[Recommendation]:
        """Return the ``k`` nearest items of the catalogue, best first."""
        return [named(record, score) for record, score in self._nearest(history, k, exclude_history)]

    def _nearest(self, history: History, k: int, exclude_history: bool) -> list[tuple[dict[str, Any], float]]:
        if k < 1:
            raise ConfigError(f"k: got {k}, expected 1 or more")
        catalogue = self._retrieval.catalogue
        events = read_events(history, catalogue)
        met = {event["place"] for event in events if event["place"] is not None} if exclude_history else set()
        places, scores = self.catalog.search(self._user(events), _places(events), k + len(met))
        chosen = [(place, score) for place, score in zip(places, scores, strict=True) if place not in met]
        return [(catalogue.record(place), score) for place, score in chosen[:k]]

    def rank(
        self, history: History, candidates: Sequence[str | Event], context: Mapping[str, Any] | None = None
    ) -> list[Recommendation]:
        """Return candidates (ids, titles, or mappings of an item's fields) by the ranker's probability of a yes.

        Args:
            history: what the user did, oldest first; may be empty.
            candidates: what to order.
            context: what else is known of the request, for a run that tells scenes apart: ``time`` (Unix seconds; now
                where not given) and the user's or the page's fields.

        Raises:
            RunError: there is no ranking run.
            DataError: a candidate that is neither known nor described, or a time that is none.
        """
        if self.ranker is None:
            raise RunError("ranking needs a ranking run: m6rec.load(RUN, ranker=RANKING_RUN)")
        task = self.ranker.task
        assert isinstance(task, Ranking)
        items = [read_candidate(task.catalogue, candidate) for candidate in candidates]
        events = [with_record(task.catalogue, event) for event in read_events(history, task.catalogue)]
        user, records = UserText(events=events), [record for _, record in items]
        scenes = _scenes(self.ranker.recipe.scenes, records, {"time": int(time.time()), **(context or {})})
        scores = score_in_scenes(
            self.ranker.backbone, scenes, lambda active, rows: task.rank(active, user, [items[row] for row in rows])
        )
        order = np.argsort(-scores, kind="stable")
        return [named(items[index][1], float(scores[index])) for index in order]

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Put the run on the Hugging Face Hub and return the commit's address.

        What the catalogue has gained or lost since the run was opened does not go along; nor does the ranker, which is
        a run of its own.

        Args:
            name: ``owner/name``.
            options: as :func:`m6rec.hub.transfer.push` has them.

        Raises:
            HubError: the run cannot be published as it is, or the Hub refuses it.
        """
        return push(self.run.folder, name, **options)

    def _user(self, events: list[dict[str, Any]]) -> torch.Tensor:
        """Return the user's vector, as the index wants it."""
        task, backbone = self._retrieval, self.run.backbone
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
        space = self.catalog.space
        last = last_segments([window.segments], space.config.window)
        return space.users(state, space.profiles(last.to(state.device), segments.texts))[0]


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

    def search(self, user: torch.Tensor, history: NDArray[np.int64], k: int) -> tuple[list[int], list[float]]:
        """Return positions and scores of the ``k`` best items on offer.

        The index finds the best inner products; items that followed the history in others' come on top. Counted links
        only ever add to a score, so that the best of both lists together are the best of the catalogue.
        """
        task = self._recommender._retrieval
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
        task = self._recommender._retrieval
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
        recommender = self._recommender
        task = recommender._retrieval
        missing = [item for item in items if item.get("id") is None]
        if missing:
            raise DataError(f"got an item without `id`: {dict(missing[0])!r}")
        records = [{key: value for key, value in item.items() if key != "id"} for item in items]
        texts = [task.renderer.item(record) for record in records]
        unnamed = task.renderer.item({})
        empty = [item["id"] for item, text in zip(items, texts, strict=True) if text == unnamed]
        if empty:
            raise DataError(f"got items without any text: {', '.join(map(str, empty[:5]))}; give a title")
        vectors = task.encoder.encode(recommender.run.backbone, task.tokenizer.texts(texts))
        task.catalogue.add([str(item["id"]) for item in items], records, texts, vectors)
        # Every new item's boost depends on how many there are, so the index is made anew at the next request.
        self._index = None

    def remove(self, ids: Sequence[str]) -> None:
        """Stop offering items.

        Raises:
            DataError: an unknown id; nothing is removed then.
        """
        places = self._recommender._retrieval.catalogue.remove([str(key) for key in ids])
        if self._index is not None:
            self._index.remove(np.array(places))


def _scenes(rule: SceneConfig | None, items: Sequence[Event], context: Event) -> NDArray[np.int16]:
    return np.zeros(len(items), np.int16) if rule is None else SceneRule(rule).of_request(items, context)


def _gaps(events: list[dict[str, Any]]) -> NDArray[np.int64]:
    times = [event.get("time") for event in events]
    if None in times:
        return np.zeros(len(events), dtype=np.int64)
    return gap_buckets(np.array(times, dtype=np.int64))


def _places(events: list[dict[str, Any]]) -> NDArray[np.int64]:
    return np.array([-1 if event["place"] is None else event["place"] for event in events], dtype=np.int64)


def _words(event: Event, task: Retrieval) -> str:
    return task.renderer.event(with_record(task.catalogue, event))[1]
