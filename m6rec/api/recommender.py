"""One recommender over many runs: each request goes to the run that was trained for it. Knows no file and no screen."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from m6rec.api.catalog import Catalog
from m6rec.api.talking import Reply, Turns, suggest, talk, talk_stream
from m6rec.api.team import Team
from m6rec.api.writing import (
    Creation,
    Explanation,
    create,
    decoding_of,
    explain,
    generate,
    generate_stream,
    scores,
    together,
    writes,
)
from m6rec.assemble import Run, open_run, open_runs
from m6rec.backbones.base import Backbone
from m6rec.backbones.scenes import score_in_scenes
from m6rec.coldstart.users import ColdUsers
from m6rec.data.scenes import SceneConfig, SceneRule
from m6rec.errors import ConfigError, DataError, RunError
from m6rec.hub.transfer import locate, push
from m6rec.requests import Event, History, Recommendation, named, read_candidate, read_events, with_record
from m6rec.tasks.ranking.task import Ranking
from m6rec.tasks.zeroshot.task import ZeroShot
from m6rec.text.prompt import UserText


def load(
    run: str | Path,
    *more: str | Path,
    ranker: str | Path | None = None,
    index: str = "exact",
    backbone: Backbone | None = None,
) -> "Recommender":
    """Open runs as one recommender; each request goes to the run that was trained for it.

    Runs that were trained on the same weights share one backbone in memory, each with its own adapter.

    Args:
        run: folder of a run, or its name on the Hub, ``owner/name``.
        more: further runs: one that ranks what the first retrieves, one that explains, one that writes titles, ...
        ranker: the same as one of ``more``, but it has to be a ranking run.
        index: name on the indexes shelf; speed only.
        backbone: a bare one that is in memory already, to open many runs on one.

    Raises:
        RunError: a folder is no finished run, or the ranker is none.
        HubError: there is no such folder, and the Hub does not give such a run.
    """
    folders = [locate(each) for each in (run, *more, *([] if ranker is None else [ranker]))]
    runs = [open_run(folders[0])] if len(folders) == 1 and backbone is None else open_runs(folders, backbone)
    if ranker is not None and not isinstance(runs[-1].task, Ranking):
        raise RunError(f"{runs[-1].folder} holds the task {runs[-1].card['task']!r}, expected a ranking run as ranker")
    return Recommender(runs, index)


class Recommender:
    """Answers for one request at a time; nothing is keyed by a user that training has seen.

    A history is a text of titles separated by ``;``, or a list of events: a string (a title or item id), or a mapping
    with ``item`` (id, title, or a mapping of the item's fields) or ``query``, and optionally ``verb``, ``time`` (Unix
    seconds) and ``value``. Items that the catalogue does not hold are read by their text.

    Args:
        runs: at least one.
        index: name on the indexes shelf; speed only.

    Attributes:
        run: the first run.
        catalog: items on offer; ``add`` and ``remove`` need no retraining.
    """

    def __init__(self, runs: Sequence[Run], index: str = "exact") -> None:
        self.team, self.run = Team(runs), runs[0]
        self.catalog = Catalog(self.team.retriever() if self.team.can_retrieve else self.run, index)

    @property
    def ranker(self) -> Run | None:
        """The run that was trained to rank; ``None`` = there is none."""
        return self.team.ranker() if self.team.can_rank else None

    def recommend(self, history: History, k: int = 10, *, exclude_history: bool = True) -> list[Recommendation]:
        """Return the ``k`` best items for a history; retrieved, and ordered by the ranker where there is one.

        A run for new users orders the whole catalogue, where no run retrieves.

        Args:
            history: what the user did, oldest first; may be empty.
            k: how many.
            exclude_history: never recommend what the history holds.

        Raises:
            DataError: an event that cannot be read.
        """
        if self.team.ranks_everything and not self.team.can_retrieve:
            return self._rank_catalogue(history, k, exclude_history)
        if not self.team.can_rank or k < 1:
            return self.retrieve(history, k, exclude_history=exclude_history)
        found = self._nearest(history, max(5 * k, 50), exclude_history)
        # As records: the ranker's own catalogue may lack what has been added to this one.
        return self.rank(history, [record for record, _ in found])[:k]

    def retrieve(self, history: History, k: int = 100, *, exclude_history: bool = True) -> list[Recommendation]:
        """Return the ``k`` nearest items of the catalogue, best first."""
        return [named(record, score) for record, score in self._nearest(history, k, exclude_history)]

    def _rank_catalogue(self, history: History, k: int, exclude_history: bool) -> list[Recommendation]:
        if k < 1:
            raise ConfigError(f"k: got {k}, expected 1 or more")
        catalogue = self.team.ranker().task.catalogue
        met = {event["place"] for event in read_events(history, catalogue)} if exclude_history else set()
        places = [int(place) for place in np.flatnonzero(catalogue.offered) if place not in met]
        return self.rank(history, [catalogue.keys[place] for place in places])[:k]

    def _nearest(self, history: History, k: int, exclude_history: bool) -> list[tuple[dict[str, Any], float]]:
        if k < 1:
            raise ConfigError(f"k: got {k}, expected 1 or more")
        catalogue = self.team.retriever().task.catalogue
        events = read_events(history, catalogue)
        met = {event["place"] for event in events if event["place"] is not None} if exclude_history else set()
        found = self.catalog.nearest(events, k, frozenset(met))
        return [(catalogue.record(place), score) for place, score in found]

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
            RunError: no run ranks.
            DataError: a candidate that is neither known nor described, or a time that is none.
        """
        run = self.team.ranker()
        items = [read_candidate(run.task.catalogue, candidate) for candidate in candidates]
        scores = self.likelihoods_of_yes(run, read_events(history, run.task.catalogue), items, context or {})
        order = np.argsort(-scores, kind="stable")
        return [named(items[index][1], float(scores[index])) for index in order]

    def likelihoods_of_yes(
        self, run: Run, events: Sequence[dict[str, Any]], items: Sequence[tuple[int | None, Event]], context: Event
    ) -> NDArray[np.float32]:
        """Return a ranking run's probability of a yes for each candidate, in the order that they are given.

        Args:
            run: that ranks.
            events: as :func:`m6rec.requests.read_events` gives them.
            items: as :func:`m6rec.requests.read_candidate` gives them.
            context: as :meth:`rank` takes it.
        """
        task = run.task
        assert isinstance(task, Ranking | ColdUsers | ZeroShot)
        user = UserText(events=[with_record(task.catalogue, event) for event in events])
        scenes = _scenes(run.recipe.scenes, [record for _, record in items], {"time": int(time.time()), **context})
        scores: NDArray[np.float32] = score_in_scenes(
            run.backbone, scenes, lambda active, rows: task.rank(active, user, [items[row] for row in rows])
        )
        return scores

    def score_drops(self, history: History, item: str | Event, which: Sequence[int] | None = None) -> list[float]:
        """Return, for each event of a history, how much an item's score drops without it.

        By the ranker's log-odds of a yes where there is one, else by the retrieval run's score.

        Args:
            history: what the user did, oldest first.
            item: its id or title.
            which: numbers of the events; default: all.

        Raises:
            RunError: no run ranks or retrieves.
            DataError: an item that the retrieval run's catalogue does not hold.
        """
        run = self.ranker or self.team.retriever()
        events, score = read_events(history, run.task.catalogue), self._scorer(run, item)
        whole = score(events)
        chosen = range(len(events)) if which is None else which
        return [whole - score(events[:place] + events[place + 1 :]) for place in chosen]

    def _scorer(self, run: Run, item: str | Event) -> Callable[[list[dict[str, Any]]], float]:
        """Return history -> score of an item, by a run that ranks or retrieves."""
        candidate = read_candidate(run.task.catalogue, item)
        if not self.team.can_rank:
            if candidate[0] is None:
                raise DataError(f"got the item {item!r}, which the catalogue lacks; add it: rec.catalog.add([...])")
            return partial(self.catalog.score, place=candidate[0])

        def log_odds(events: list[dict[str, Any]]) -> float:
            yes = float(self.likelihoods_of_yes(run, events, [candidate], {})[0])
            return math.log(max(yes, 1e-12)) - math.log(max(1 - yes, 1e-12))

        return log_odds

    def explain(self, history: History, item: str | Event, **decoding: Any) -> Explanation:
        """Return why an item suits a user, and what that rests on; by the run that writes explanations.

        Args:
            history: what the user did, oldest first; may be empty.
            item: its id or title, or a mapping of its fields.
            decoding: settings of :class:`m6rec.decoding.DecodingConfig`; default: the run's own.

        Raises:
            RunError: no run explains.
            DataError: an event that cannot be read, or an item that is neither known nor described.
        """
        run = self.team.writer("explanation")
        catalogue = run.task.catalogue
        events = read_events(history, catalogue)
        _, record = read_candidate(catalogue, item)
        found = explain(run, events, record, decoding_of(run, decoding))
        if not found.evidence.events or not self._can_score(item):
            return found
        return replace(found, drops=tuple(self.score_drops(history, item, found.evidence.events)))

    def _can_score(self, item: str | Event) -> bool:
        """Whether a run ranks, or retrieves from a catalogue that holds the item."""
        if self.team.can_rank or not self.team.can_retrieve:
            return self.team.can_rank
        return read_candidate(self.catalog.retrieval.catalogue, item)[0] is not None

    def create(
        self,
        history: History | Sequence[Sequence[Event | str]],
        kind: str = "title",
        n: int = 1,
        *,
        item: str | Event | None = None,
        apart: float = 0.0,
        **decoding: Any,
    ) -> list[Creation]:
        """Return what could be made for a user, or for a group; by the run that writes this kind of text.

        Args:
            history: what the user did, oldest first; or a list of such lists, one for each member of a group.
            kind: ``"title"``, ``"query"``, ``"description"``, or any other prompt that a run was trained on.
            n: how many different ones at most; more than one are sampled.
            item: what it is about, where the prompt shows an item.
            apart: the least share of their words that two of them do not have in common.
            decoding: settings of :class:`m6rec.decoding.DecodingConfig`; default: the run's own.

        Raises:
            RunError: no run writes, or none writes this kind (:class:`UnknownNameError`).
            DataError: an event that cannot be read, or no item for a kind that is about one.
        """
        if n < 1:
            raise ConfigError(f"n: got {n}, expected 1 or more")
        run = self.team.writer(kind)
        task = writes(run)
        if item is None and task.about_item:
            raise DataError(f"a {kind} is about an item: give item=, an id, a title, or a mapping of its fields")
        record = {} if item is None else read_candidate(task.catalogue, item)[1]
        if isinstance(history, str) or not all(isinstance(part, list | tuple) for part in history) or not history:
            events = read_events(cast(History, history), task.catalogue)
        else:
            members = [read_events(cast(History, part), task.catalogue) for part in history]
            events = together(members, task.config.max_events)
        settings = {"strategy": "sample", "top_p": 0.95, **decoding} if n > 1 else decoding
        return create(run, events, record, n, apart, decoding_of(run, settings))

    def generate(self, text: str | Sequence[str], source: str = "", **decoding: Any) -> Any:
        """Return free text with its blanks filled.

        ``[MASK]`` is a blank; a text without one is gone on with. Nothing else in a text is more than words.

        Args:
            text: one text, or many.
            source: M6's source region: what is known, e.g. of the user, in words.
            decoding: settings of :class:`m6rec.decoding.DecodingConfig`; default: the run's own.

        Returns:
            :class:`Filled`, or a list of them for many texts. A blank that met the limit of length is kept as far as
            it got, and says that it is not complete.

        Raises:
            RunError: no run can write.
            DataError: a text without words.
            ConfigError: a text that is too long, or wrong settings.
        """
        run = self.team.speaker()
        found = generate(run, [text] if isinstance(text, str) else text, source, decoding_of(run, decoding))
        return found[0] if isinstance(text, str) else found

    def stream(self, text: str, source: str = "", **decoding: Any) -> Iterator[str]:
        """Yield what goes on behind a text, in pieces, as it is written; as :meth:`generate` otherwise."""
        run = self.team.speaker()
        return generate_stream(run, text, source, decoding_of(run, decoding))

    def score(self, text: str | Sequence[str], history: History = "") -> Any:
        """Return how likely the language model finds an event in words: the sum of its tokens' log-probabilities.

        Comparable between texts that say the same in as many words; no training is needed, but a language model is.

        Args:
            text: one text (a number is returned), or many (a list).
            history: what the user did before.

        Raises:
            RunError: no run can write.
            DataError: a text without words.
        """
        run = self.team.speaker()
        events = [with_record(run.task.catalogue, event) for event in read_events(history, run.task.catalogue)]
        found = scores(run, [text] if isinstance(text, str) else text, UserText(events=events))
        return found[0] if isinstance(text, str) else found

    def chat(self, turns: Turns, **decoding: Any) -> Reply:
        """Return what to say next in a dialogue: a recommendation of real items of the catalogue, or a question.

        The dialogue comes whole with every call, and nothing is kept: go on with ``[*turns, reply.turn, "..."]``.

        Args:
            turns: oldest first; texts (the two in turn, the last one the user's), or mappings with ``speaker`` (USER or
                SYSTEM), ``text`` and, where they are known, ``items`` (ids or titles). May be empty.
            decoding: settings of :class:`m6rec.decoding.DecodingConfig`; default: the run's own.

        Raises:
            RunError: no run talks.
            DataError: a turn that cannot be read.
        """
        run = self.team.talker()
        return talk(run, [turns], decoding_of(run, decoding))[0]

    def chat_stream(self, turns: Turns, **decoding: Any) -> Iterator[str | Reply]:
        """Yield the reply in pieces as it is written, a title in one, and at the end whole; as :meth:`chat` else."""
        run = self.team.talker()
        return talk_stream(run, turns, decoding_of(run, decoding))

    def suggest(self, turns: Turns, k: int = 10) -> list[Recommendation]:
        """Return the ``k`` items likeliest to be recommended next in a dialogue, without any words."""
        return suggest(self.team.talker(), turns, k)

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


def _scenes(rule: SceneConfig | None, items: Sequence[Event], context: Event) -> NDArray[np.int16]:
    return np.zeros(len(items), np.int16) if rule is None else SceneRule(rule).of_request(items, context)
