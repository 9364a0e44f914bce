"""Reads a request: what is asked, of which events and items. Knows no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m6rec.errors import ConfigError, DataError
from m6rec.requests import Known, read_candidate, read_events
from m6rec.serving.stage import Payload, Update
from m6rec.serving.stages.base import LISTS, PlainStage, key_of

# What changes when an answer is wanted, not what it is.
_UNREAD = ("deadline_ms", "stream")


@dataclass(frozen=True)
class ParseConfig:
    """Bounds of what is read; beyond them a request is refused as it is."""

    max_events: int = 10_000
    """Longest history."""
    max_candidates: int = 2_000
    """Longest list of candidates, of allowed, or of blocked items."""
    max_k: int = 1_000
    """Most items in an answer."""


class Parse(PlainStage):
    """Reads what is asked and gives it a key, so that the same question need not be answered twice.

    Adds ``key`` to all; to a list's request ``events``, ``seen``, ``k``, ``allow`` and ``block``; to a ranking one
    ``events`` and ``candidates``.
    """

    name = "parse"
    Config = ParseConfig

    def wants(self, payload: Payload) -> bool:
        """Return ``True``."""
        return True

    def one(self, payload: Payload) -> Update:
        """Return what one request says.

        Raises:
            DataError: it cannot be read.
            ConfigError: it asks for the impossible.
        """
        request, kind = payload["request"], payload["kind"]
        if not isinstance(request, Mapping):
            raise DataError(f"got a request of type {type(request).__name__}, expected a mapping")
        if kind in LISTS:
            return self._list(request, kind)
        if kind == "rank":
            return self._rank(request)
        return {"key": None}

    def _list(self, request: Mapping[str, Any], kind: str) -> Update:
        catalogue = self.models.recommender.catalog.retrieval.catalogue
        events, k = self._events(request, catalogue), request.get("k", 10 if kind == "recommend" else 100)
        if not isinstance(k, int) or not 1 <= k <= self.config.max_k:
            raise ConfigError(f"k: got {k!r}, expected 1 to {self.config.max_k}")
        met = {event["place"] for event in events if event["place"] is not None}
        allow = None if request.get("allow") is None else self._places(request["allow"], "allow", catalogue)
        rest = {name: value for name, value in request.items() if name not in (*_UNREAD, "history")}
        found = {
            "events": events,
            "seen": frozenset(met if request.get("exclude_history", True) else ()),
            "k": k,
            "allow": allow,
            "block": self._places(request.get("block") or [], "block", catalogue),
            "rest": [kind, rest],
        }
        query = key_of(self.models.version, found["rest"], events)
        return {**found, "query": query, "key": (query, self.models.revision)}

    def _rank(self, request: Mapping[str, Any]) -> Update:
        catalogue = self.models.recommender.team.ranker().task.catalogue
        given = self._bounded(request.get("candidates"), "candidates")
        items = [read_candidate(catalogue, candidate) for candidate in given]
        once = {str(record.get("key") or record.get("title")): (place, record) for place, record in reversed(items)}
        rest = {name: value for name, value in request.items() if name not in _UNREAD}
        query = key_of(self.models.version, ["rank", rest], [])
        events = self._events(request, catalogue)
        return {"events": events, "candidates": list(reversed(once.values())), "key": (query, self.models.revision)}

    def _events(self, request: Mapping[str, Any], catalogue: Known) -> list[dict[str, Any]]:
        events = read_events(request.get("history", ""), catalogue)
        if len(events) > self.config.max_events:
            raise DataError(
                f"got a history of {len(events)} events, expected at most {self.config.max_events}; give the newest"
            )
        return events

    def _places(self, keys: Any, what: str, catalogue: Known) -> frozenset[int]:
        found = (catalogue.find(str(key)) for key in self._bounded(keys, what))
        return frozenset(place for place in found if place is not None)

    def _bounded(self, given: Any, what: str) -> Sequence[Any]:
        if not isinstance(given, Sequence) or isinstance(given, str | bytes):
            raise DataError(f"{what}: got {type(given).__name__}, expected a list of items")
        if len(given) > self.config.max_candidates:
            raise DataError(f"{what}: got {len(given)} items, expected at most {self.config.max_candidates}")
        return given
