"""What there is to write: the answers of a prompt, gathered from a dataset's reviews, events and items.

A prompt's answers name the tables they are from (``{{ review.reason }}``), so that a new kind of text needs no code.
Knows no model and no tokenizer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import NO_TIME, SPLIT_CODES, Histories, Judgements, Split
from m6rec.data.store import Dataset
from m6rec.errors import DataError, TemplateError, nearest
from m6rec.text.prompt import Prompt
from m6rec.text.template import clean

TABLES = ("item", "event", "review")


@dataclass(frozen=True)
class Passage:
    """One text that a user's moment asks for.

    Args:
        item: fields of the item that it is about; empty = none.
        answers: name of each answer -> its words.
    """

    item: Mapping[str, Any]
    answers: Mapping[str, str]

    @property
    def whole(self) -> str:
        """All answers, one after the other."""
        return " ".join(self.answers.values())


@dataclass(frozen=True)
class Passages:
    """The passages of a split, and where in the users' histories they stand.

    Args:
        moments: user, item and visible events of each (:class:`Judgements`; their labels mean nothing).
        texts: one a moment.
    """

    moments: Judgements
    texts: Sequence[Passage]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, which: NDArray[np.integer]) -> "Passages":
        """Return the passages numbered ``which``, in that order."""
        return Passages(self.moments.take(which), [self.texts[number] for number in which.tolist()])


def gather(dataset: Dataset, prompt: Prompt, split: Split, min_value: float | None = None) -> Passages:
    """Return everything that a prompt asks to write in a split.

    Its answers say where from: with ``review`` in them every review is a passage, with ``event`` every event, with
    ``item`` alone every event that has an item. A moment sees the events before it; a held-out one only those of
    earlier splits. Where an answer would be empty there is no passage.

    Args:
        dataset: the prepared folder.
        prompt: its answers have texts.
        split: which.
        min_value: least rating of a review or event; one without a rating stays.

    Raises:
        TemplateError: an answer without a text, or one that asks for another table.
        DataError: reviews are asked for, and there are none.
    """
    tables = _tables(prompt)
    places = _reviewed(dataset, split) if "review" in tables else _happened(dataset, split)
    kept, texts = [], []
    for number, record in enumerate(_records(dataset, places, "review" in tables)):
        value = record.get("review", record["event"]).get("value")
        if min_value is not None and value is not None and value < min_value:
            continue
        if "item" in tables and not record["item"]:
            continue
        fields = clean(record)
        answers = {part.options.name: part.phrases.render(fields) for part in prompt.answers if part.phrases}
        if all(answers.values()):
            kept.append(number)
            texts.append(Passage(record["item"], answers))
    return Passages(places.moments.take(np.array(kept, dtype=np.int64)), texts)


@dataclass(frozen=True)
class _Places:
    """Where something may have been written.

    Args:
        moments: of each; ``rows`` are events, -1 = none.
        reviews: ``[moments]`` rows of the reviews.
    """

    moments: Judgements
    reviews: NDArray[np.int64]


def _tables(prompt: Prompt) -> frozenset[str]:
    names = frozenset[str]()
    for part in prompt.answers:
        fields = part.phrases.fields if part.phrases is not None else frozenset()
        if not fields:
            raise part.place.error('got an answer without a text, expected e.g. text: "{{ review.reason }}"')
        for field in fields - {*TABLES}:
            raise part.place.error(f"unknown table {field!r}{nearest(field, TABLES)}")
        names |= fields
    if not names:
        raise TemplateError(f"{prompt.path}: got a prompt without an answer, expected one in its branch")
    return names


def _happened(dataset: Dataset, split: Split) -> _Places:
    """Return every event of a split."""
    everything = dataset.histories()
    events = np.flatnonzero(everything.splits == SPLIT_CODES[split])
    moments = _moments(everything, split, everything.users[events], everything.items[events], events)
    return _Places(moments, np.full(len(events), -1))


def _reviewed(dataset: Dataset, split: Split) -> _Places:
    """Return the event that each review of a split is about; a review of none sees what came before its time."""
    if dataset.reviews is None:
        raise DataError(f"{dataset.folder} has no reviews, and the prompt asks for them; take another prompt")
    table = dataset.reviews.with_format("arrow").select_columns(["user", "item", "time", "split"])[:]
    reviews = np.flatnonzero(table["split"].to_numpy() == SPLIT_CODES[split])
    users, items = (table[name].to_numpy()[reviews] for name in ("user", "item"))
    times = table["time"].fill_null(NO_TIME).to_numpy()[reviews]
    everything = dataset.histories()
    pairs = zip(users.tolist(), items.tolist(), times.tolist(), strict=True)
    events = np.array([_event_of(everything, *pair) for pair in pairs], dtype=np.int64)
    return _Places(_moments(everything, split, users, items, events), reviews)


def _event_of(histories: Histories, user: int, item: int, time: int) -> int:
    """Return the last event with the item, no later than the review; else where it would stand among the user's."""
    own = histories.of(user)
    stop = own.stop
    if histories.times is not None:
        stop = own.start + int(np.searchsorted(histories.times[own], time, side="right"))
    found = np.flatnonzero(histories.items[own.start : stop] == item)
    return own.start + int(found[-1]) if len(found) else stop


def _moments(
    everything: Histories, split: Split, users: NDArray[np.int32], items: NDArray[np.int32], events: NDArray[np.int64]
) -> Judgements:
    history = everything.before(split)
    lengths = np.minimum(events - everything.offsets[users], np.diff(history.offsets)[users])
    assert everything.rows is not None
    inside = events < everything.offsets[users + 1]
    rows = np.where(inside, everything.rows[np.minimum(events, everything.num_events - 1)], -1)
    labels = np.zeros(len(users), dtype=np.float32)
    return Judgements(history, users.astype(np.int32), items.astype(np.int32), labels, lengths, rows=rows)


def _records(dataset: Dataset, places: _Places, reviewed: bool) -> Iterator[dict[str, Any]]:
    """Yield what a prompt's answers may speak of, moment by moment."""
    assert places.moments.rows is not None
    triples = zip(places.moments.items.tolist(), places.moments.rows.tolist(), places.reviews.tolist(), strict=True)
    for item, event, review in triples:
        record: dict[str, Any] = {"item": dataset.item_record(item) if item >= 0 else {}, "event": {}}
        if reviewed:
            assert dataset.reviews is not None
            record["review"] = dataset.reviews[review]
        elif event >= 0:
            record["event"] = dataset.event_record(event)
        yield record
