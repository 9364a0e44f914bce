"""Requests as anybody writes them: histories, candidates, and what comes back. Knows no model and loads no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from m6rec.errors import DataError

Event = Mapping[str, Any]
History = str | Sequence[Event | str]


class Known(Protocol):
    """A catalogue, as far as a request asks it."""

    def find(self, known: str) -> int | None:
        """Return the position of an item by its key or title."""
        ...

    def record(self, place: int) -> dict[str, Any]:
        """Return an item's fields, its key among them."""
        ...


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


def read_events(history: History, catalogue: Known) -> list[dict[str, Any]]:
    """Return events as mappings with the item's ``place`` in the catalogue (or ``None``).

    Raises:
        DataError: an event that cannot be read.
    """
    parts = history.split(";") if isinstance(history, str) else history
    if not isinstance(parts, Sequence):
        raise DataError(f"got a history of type {type(history).__name__}, expected a text or a list of events")
    events = []
    for number, part in enumerate(parts, start=1):
        if isinstance(part, str):
            if part.strip():
                events.append(read_event({"item": part.strip()}, catalogue))
        elif isinstance(part, Mapping) and (part.get("item") is not None or part.get("query") or part.get("title")):
            _check_time(part, number)
            events.append(read_event(part, catalogue))
        else:
            raise DataError(
                f"event {number} of the history: got {part!r}, expected a title, an item id, or a mapping with "
                "`item`, `title` or `query`"
            )
    return events


def read_event(event: Event, catalogue: Known) -> dict[str, Any]:
    """Return one event as a mapping with the item's ``place``."""
    item = event.get("item", event if event.get("title") else None)
    place = catalogue.find(str(item)) if item is not None and not isinstance(item, Mapping) else None
    if isinstance(item, Mapping):
        known = next((item[name] for name in ("id", "key", "title") if item.get(name) is not None), None)
        place = catalogue.find(str(known)) if known is not None else None
        item = {name: value for name, value in item.items() if name not in ("verb", "time", "value", "query")}
    elif item is not None:
        item = {"title": str(item)}
    kept = {name: event[name] for name in ("verb", "time", "value", "query") if event.get(name) is not None}
    return {**kept, **({"item": item} if item is not None else {}), "place": place}


def with_record(catalogue: Known, event: Event) -> dict[str, Any]:
    """Return an event with its item's fields in place of the position."""
    place = event["place"]
    record = catalogue.record(place) if place is not None else event.get("item")
    kept = {name: value for name, value in event.items() if name not in ("place", "item")}
    return kept if record is None else {**kept, "item": record}


def read_candidate(catalogue: Known, candidate: str | Event) -> tuple[int | None, Mapping[str, Any]]:
    """Return a candidate's position (``None`` = a stranger) and record.

    Raises:
        DataError: it is neither known nor described.
    """
    if isinstance(candidate, Mapping):
        key = candidate.get("id", candidate.get("key"))
        place = catalogue.find(str(key)) if key is not None else None
        if place is None and not any(isinstance(value, str) for name, value in candidate.items() if name != "id"):
            raise DataError(f"got a candidate that is neither known nor described: {dict(candidate)!r}; give a title")
        return (place, catalogue.record(place)) if place is not None else (None, {"key": key, **candidate})
    if not isinstance(candidate, str) or not candidate.strip():
        raise DataError(f"got candidate {candidate!r}, expected an item id, a title, or a mapping of an item's fields")
    place = catalogue.find(candidate)
    return (place, catalogue.record(place)) if place is not None else (None, {"title": candidate, "key": candidate})


def named(record: Mapping[str, Any], score: float) -> Recommendation:
    """Return an item's fields and score as an answer."""
    key = str(record.get("key") or record.get("title"))
    return Recommendation(key, str(record.get("title") or key), float(score))


def _check_time(event: Event, number: int) -> None:
    time = event.get("time")
    if time is not None and not (isinstance(time, Real) and math.isfinite(time)):
        raise DataError(f"event {number} of the history: got time {time!r}, expected Unix seconds")
