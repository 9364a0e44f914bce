"""From records to words: an item, an event, a profile, a context or a statistic in the words of one domain.

The words stand in ``data_templates/<domain>.yaml``. This module knows no task, no layout and no tokenizer.
"""

import bisect
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from m6rec.errors import TemplateError, nearest
from m6rec.text.library import find
from m6rec.text.moments import UNITS, Calendar, Clock
from m6rec.text.template import Document, Phrases, clean, read

KEYS = (
    "extends", "item", "unnamed", "verbs", "stub", "query", "profile", "context", "statistics", "time", "calendar",
)  # fmt: skip
_TABLES = ("verbs", "statistics", "time", "calendar")
Record = Mapping[str, Any]


class Renderer:
    """One domain's words, compiled once.

    Args:
        domain: name of a data template (``"beauty"``), or the path of one's own YAML file.
        folder: the user's template folder; default: the environment variable ``M6REC_TEMPLATES``.

    Attributes:
        fingerprint: changes whenever the words may; for the names of caches.

    Raises:
        TemplateError: no such template, or a mistake in it: names file, line and key.
    """

    def __init__(self, domain: str | Path = "default", folder: str | Path | None = None) -> None:
        self.path = find("data_templates", domain, folder)
        self.domain = self.path.stem
        pieces = _chain(self.path, folder)
        self._item, self._stub = _phrases(pieces, "item"), _phrases(pieces, "stub")
        self._profile, self._context = _phrases(pieces, "profile"), _phrases(pieces, "context")
        self._search, self._unnamed = _phrases(pieces, "query"), _phrases(pieces, "unnamed")
        self._verbs = {
            name: document.phrases(f"verbs.{name}", value)
            for name, (document, value) in _table(pieces, "verbs").items()
        }
        self._statistics = {
            name: Statistic(document, f"statistics.{name}", value)
            for name, (document, value) in _table(pieces, "statistics").items()
        }
        self._clock, self._calendar = _clock(pieces), _calendar(pieces)
        self._values = _merged(pieces)
        self.fingerprint = hashlib.sha256(json.dumps(self._values, default=str).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the domain's words as one template that extends no other."""
        text = yaml.safe_dump(self._values, sort_keys=False, allow_unicode=True, width=120)
        path.write_text(text, encoding="utf-8")

    def item(self, record: Record | str) -> str:
        """Return an item in words: never empty, free of time and user.

        Args:
            record: the item's fields; or its words, ready-made.
        """
        if isinstance(record, str):
            return " ".join(record.split()) or self._unnamed.render({})
        return self._item.render(clean(record)) or self._unnamed.render({})

    def event(self, event: Record, now: float | None = None, previous: float | None = None) -> tuple[str, str]:
        """Return an event as its time-and-verb stub (may be empty) and its object.

        Args:
            event: ``verb``, ``time`` (Unix seconds), ``value``, ``query``, ``item`` (a record or ready-made words),
                each optional.
            now: Unix seconds from which ``ago`` counts back; ``None`` leaves it out.
            previous: Unix seconds of the event before it, for ``later``; ``None`` leaves it out.

        Returns:
            Stub, object. The object is the item's words, or the query's where there is no item.
        """
        fields = clean({name: value for name, value in event.items() if name != "item"})
        return self._stub_of(fields, now, previous), self._object_of(event.get("item"), fields)

    def _stub_of(self, fields: dict[str, Any], now: float | None, previous: float | None) -> str:
        verb = str(fields.get("verb", "none"))
        phrase = self._verbs.get(verb) or self._verbs.get("other")
        values = dict(fields, did=phrase.render(fields) if phrase else verb)
        if "time" in fields and now is not None:
            values["ago"] = self._clock.since(now - fields["time"])
        if "time" in fields and previous is not None:
            values["later"] = self._clock.after(fields["time"] - previous)
        return self._stub.render(values)

    def _object_of(self, item: Record | str | None, fields: dict[str, Any]) -> str:
        if item is not None:
            return self.item(item)
        return self._search.render(fields) or self._unnamed.render({})

    def query(self, query: str) -> str:
        """Return a search in words: never empty."""
        return self._object_of(None, clean({"query": query}))

    def profile(self, user: Record) -> str:
        """Return who the user is, as far as it is known (may be empty)."""
        return self._profile.render(clean(user))

    def context(self, context: Record) -> str:
        """Return where and when we are.

        Args:
            context: any fields; ``time`` (Unix seconds) also gives ``month``, ``weekday`` and ``daypart``, and together
                with ``hemisphere`` (``"north"``, ``"south"``) the ``season``, where these are not given themselves.
        """
        fields = clean(context)
        if "time" in fields:
            fields = {**self._calendar.describe(fields["time"], fields.get("hemisphere")), **fields}
        return self._context.render(fields)

    def statistic(self, name: str, value: float) -> str:
        """Return a number in words: nothing for NaN (not known), or below the lowest band.

        Raises:
            TemplateError: the domain has no words for ``name``; offers the nearest.
        """
        if name not in self._statistics:
            raise TemplateError(f"{self.path}: no statistic {name!r}{nearest(name, self._statistics)}")
        return "" if math.isnan(value) else self._statistics[name].render(value)


class Statistic:
    """Words for one number.

    Args:
        document: the file it stands in.
        key: its dotted key.
        value: a phrase, or a mapping with ``phrase`` and ``bands`` (bound -> word).
    """

    def __init__(self, document: Document, key: str, value: Any) -> None:
        bands: Any = {}
        if isinstance(value, dict):
            for name in value:
                if name not in ("phrase", "bands"):
                    raise document.place(f"{key}.{name}").error(f"unknown key{nearest(str(name), ('phrase', 'bands'))}")
            bands, value = value.get("bands", {}), value.get("phrase", "{{ band }}")
        if not isinstance(bands, dict) or not all(isinstance(bound, int | float) for bound in bands):
            raise document.place(f"{key}.bands").error(f"got {bands!r}, expected a mapping from bound to word")
        self._bounds = sorted(bands)
        self._words = [str(bands[bound]) for bound in self._bounds]
        self._phrases = document.phrases(key, value)
        # The same few counts and rates come in every request: rendering them anew was an eighth of a cached ranking.
        self.render = functools.lru_cache(maxsize=1 << 14)(self._render)

    def _render(self, value: float) -> str:
        """Return the words for ``value``."""
        reached = bisect.bisect_right(self._bounds, value)
        band = {"band": self._words[reached - 1]} if reached else {}
        return self._phrases.render({"value": value, **band})


def _chain(path: Path, folder: str | Path | None) -> list[Document]:
    """Return the file and everything it extends, nearest first."""
    documents: list[Document] = []
    while True:
        document = read(path, KEYS)
        documents.append(document)
        parent = document.values.get("extends")
        if parent is None:
            return documents
        path = find("data_templates", str(parent), folder)
        # A user's own default.yaml may extend ours by the same name only if that does not lead back to itself.
        if any(path == known.path for known in documents):
            raise document.place("extends").error(f"{parent!r} leads back to this file; extend another one")


def _merged(pieces: list[Document]) -> dict[str, Any]:
    """Return what the files say together: tables entry by entry, all else from the nearest file that has it."""
    merged: dict[str, Any] = {}
    for piece in reversed(pieces):
        for key, value in piece.values.items():
            if value is not None and key != "extends":
                merged[key] = {**merged.get(key, {}), **value} if key in _TABLES else value
    return merged


def _phrases(pieces: list[Document], key: str) -> Phrases:
    for document in pieces:
        if document.values.get(key) is not None:
            return document.phrases(key, document.values[key])
    return Phrases(())


def _table(pieces: list[Document], key: str) -> dict[str, tuple[Document, Any]]:
    table: dict[str, tuple[Document, Any]] = {}
    for document in reversed(pieces):
        values = document.values.get(key) or {}
        if not isinstance(values, dict):
            raise document.place(key).error(f"got {values!r}, expected a mapping")
        table.update({str(name): (document, value) for name, value in values.items()})
    return table


def _clock(pieces: list[Document]) -> Clock:
    table = _table(pieces, "time")
    _check(table, "time", ("ago", "now", "later", "then", "session_minutes", "numbers", "units"))
    units = table["units"][1]
    if not isinstance(units, dict) or any(len(units.get(unit) or ()) != 2 for unit in UNITS):
        raise table["units"][0].place("time.units").error(f"expected [one, many] for each of {', '.join(UNITS)}")
    return Clock(**{name: value for name, (_, value) in table.items()})


def _calendar(pieces: list[Document]) -> Calendar:
    table = _table(pieces, "calendar")
    lengths = {"seasons": 4, "months": 12, "weekdays": 7, "dayparts": 4}
    _check(table, "calendar", tuple(lengths))
    for name, (document, value) in table.items():
        if not isinstance(value, list) or len(value) != lengths[name]:
            raise document.place(f"calendar.{name}").error(f"got {value!r}, expected a list of {lengths[name]} names")
    return Calendar(**{name: value for name, (_, value) in table.items()})


def _check(table: dict[str, tuple[Document, Any]], key: str, known: tuple[str, ...]) -> None:
    for name, (document, _) in table.items():
        if name not in known:
            raise document.place(f"{key}.{name}").error(f"unknown key{nearest(name, known)}")
    missing = [name for name in known if name not in table]
    if missing:
        raise TemplateError(f"{key}.{missing[0]} is in no file; add `extends: default`, which has it")
