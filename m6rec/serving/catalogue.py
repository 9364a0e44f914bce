"""Items that come, change and go while requests are answered: seen by the next request, kept whatever happens.

Writers take turns, and those that wait share one write to the disk and one new index; readers never wait. Knows no
HTTP, no graph and no cache.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from m6rec.api import Recommender
from m6rec.errors import DataError, ItemTakenError, ItemUnknownError, JournalError, M6RecError, StageError
from m6rec.serving.journal import Change, Journal
from m6rec.serving.snapshot import Snapshot, apply

logger = logging.getLogger(__name__)
Item = Mapping[str, Any]
Verb = Literal["add", "change", "remove"]


@dataclass(frozen=True)
class CatalogueConfig:
    """Settings of :class:`ServedCatalogue`; speed only."""

    journal_bytes: int = 1 << 20
    """Size at which a journal is made into a snapshot, in the background; what is after it is read anew at a start."""


@dataclass(eq=False)
class _Waiting:
    """A change whose writer waits for it."""

    verb: Verb
    items: list[dict[str, Any]]
    error: M6RecError | None = field(
        default_factory=lambda: StageError("catalogue", "failed in the middle of a change")
    )

    @property
    def change(self) -> Change:
        """What the journal keeps: whether an item was new is known when it is read."""
        if self.verb == "remove":
            return {"remove": [item["id"] for item in self.items]}
        return {"put": self.items}


@dataclass
class _Keys:
    """Which items are on offer behind changes that are not made yet."""

    recommender: Recommender
    ahead: dict[str, bool] = field(default_factory=dict)

    def offers(self, key: str) -> bool:
        known = self.recommender.catalog.retrieval.catalogue
        return self.ahead.get(key, known.offers(key))


class ServedCatalogue:
    """The catalogue of a recommender in service.

    Any thread may call any method.

    Args:
        recommender: has a run that retrieves; what the journal holds is done to it.
        folder: of the journal; ``None`` = changes last as long as the process.
        config: when to make a snapshot.

    Raises:
        RunError: no run retrieves.
        JournalError: the folder cannot be used, or is damaged.
    """

    def __init__(
        self, recommender: Recommender, folder: Path | None = None, config: CatalogueConfig = CatalogueConfig()
    ) -> None:
        recommender.team.retriever()
        self.config, self._recommenders = config, [recommender]
        self._journal = None if folder is None else Journal(folder)
        self._state, self._waiting = Snapshot(), deque[_Waiting]()
        self._lock, self._compacting = threading.Lock(), threading.Lock()
        if self._journal is not None:
            self._state = _restored(self._journal)
            apply(self._state, recommender)

    def __len__(self) -> int:
        """Return how many items are on offer."""
        return len(self._recommenders[0].catalog)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the fields of an item on offer, its ``id`` among them."""
        known = self._recommenders[0].catalog.retrieval.catalogue
        place = known.find(key) if known.offers(key) else None
        return None if place is None else {"id": key, **known.records[place]}

    def add(self, items: Sequence[Item]) -> None:
        """Offer new items; returns once they are kept and the next request finds them.

        Args:
            items: mappings with ``id`` and the item's fields, as JSON has them.

        Raises:
            DataError: an item without id or text, or an id that is taken; nothing was changed.
            JournalError: the disk is full or fails; nothing was changed.
        """
        self._commit("add", items)

    def change(self, items: Sequence[Item]) -> None:
        """Give items on offer other fields; returns and raises as :meth:`add`, where an id is not on offer."""
        self._commit("change", items)

    def remove(self, ids: Sequence[str]) -> None:
        """Stop offering items; returns and raises as :meth:`add`, where an id is not on offer."""
        self._commit("remove", [{"id": key} for key in ids])

    def attach(self, recommender: Recommender) -> None:
        """Do all changes to another version too, from now on, so that it can take over.

        Raises:
            RunError: no run of it retrieves.
        """
        recommender.team.retriever()
        with self._lock:
            apply(self._state, recommender)
            self._recommenders.append(recommender)

    def release(self, recommender: Recommender) -> None:
        """Leave a version that is no longer served alone."""
        with self._lock:
            self._recommenders.remove(recommender)

    def close(self) -> None:
        """Finish what goes on in the background, and let another process have the folder."""
        with self._compacting, self._lock:
            if self._journal is not None:
                self._journal.close()

    def _commit(self, verb: Verb, items: Sequence[Item]) -> None:
        """Wait for one's turn; whoever has it does the work of all who wait."""
        mine = _Waiting(verb, [_plain(item) for item in items])
        self._waiting.append(mine)
        with self._lock:
            if mine in self._waiting:
                self._commit_all([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.error is not None:
            raise mine.error

    def _commit_all(self, together: Sequence[_Waiting]) -> None:
        good = self._checked(together)
        try:
            if self._journal is not None and good:
                self._journal.append([one.change for one in good])
        except JournalError as error:
            for one in good:
                one.error = error
            return
        changes = Snapshot.of(one.change for one in good)
        self._state.take(changes)
        for recommender in self._recommenders:
            apply(changes, recommender)
        for one in good:
            one.error = None
        self._compact_if_long()

    def _checked(self, together: Sequence[_Waiting]) -> list[_Waiting]:
        """Return the changes that can be made one after the other; the others get their error."""
        keys, good = _Keys(self._recommenders[0]), []
        for one in together:
            try:
                _check(one, keys)
                good.append(one)
            except DataError as error:
                one.error = error
        return good

    def _compact_if_long(self) -> None:
        journal = self._journal
        if journal is None or journal.size_bytes < self.config.journal_bytes or self._compacting.locked():
            return
        self._compacting.acquire()
        try:
            generation, state = journal.rotate(), self._state.with_vectors(self._recommenders[0])
        except JournalError:
            logger.exception("the journal stays as it is")
            self._compacting.release()
            return
        threading.Thread(target=self._compact, args=(journal, generation, state), name="compaction").start()

    def _compact(self, journal: Journal, generation: int, state: Snapshot) -> None:
        try:
            journal.keep_snapshot(generation, state.save)
        except JournalError:
            logger.exception("the journal goes on without a snapshot")
        finally:
            self._compacting.release()


def _restored(journal: Journal) -> Snapshot:
    state = Snapshot() if journal.snapshot is None else Snapshot.load(journal.snapshot)
    state.take(Snapshot.of(journal.replay()))
    return state


def _plain(item: Item) -> dict[str, Any]:
    """Return an item as JSON has it.

    Raises:
        DataError: JSON cannot have it.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(item), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(f"got an item that cannot be kept ({error}): {item!r}; give texts and numbers") from error
    return plain if plain.get("id") is None else {**plain, "id": str(plain["id"])}


def _check(one: _Waiting, keys: _Keys) -> None:
    """Raise :class:`DataError` where a change cannot be made; note what is on offer behind it."""
    ids = [item.get("id") for item in one.items]
    if len(set(ids)) < len(ids):
        raise DataError("got an item id twice in one call; give each once")
    wrong = [str(key) for key in ids if key is not None and keys.offers(key) == (one.verb == "add")]
    if wrong and one.verb == "add":
        raise ItemTakenError(f"got item ids that are taken: {', '.join(wrong[:5])}; change these items, or remove them")
    if wrong:
        raise ItemUnknownError(f"got item ids that are not on offer: {', '.join(wrong[:5])}; nothing was changed")
    if one.verb != "remove":
        keys.recommender.catalog.texts(one.items)
    keys.ahead.update({str(key): one.verb != "remove" for key in ids})
