"""Histories as people write them into a box, and examples of some. Knows no screen."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from m6rec.api import Recommender

SEARCH = "search"


def read_lines(text: str, verbs: Iterable[str] = ()) -> list[Any]:
    """Return a box's lines as events: a title or id, ``search: words``, or ``buy: title`` with a verb of the log.

    >>> read_lines("red lamp\\nsearch: warm shoes\\nbuy: On the Road: Home", ["buy"])
    ['red lamp', {'query': 'warm shoes'}, {'item': 'On the Road: Home', 'verb': 'buy'}]
    """
    known = {verb.casefold(): verb for verb in verbs}
    events: list[Any] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(":")
        if rest.strip() and word.strip().casefold() == SEARCH:
            events.append({"query": rest.strip()})
        elif rest.strip() and word.strip().casefold() in known:
            events.append({"item": rest.strip(), "verb": known[word.strip().casefold()]})
        else:
            events.append(line)
    return events


def line_of(event: Any) -> str:
    """Return an event as :func:`read_lines` reads it."""
    if not isinstance(event, dict):
        return str(event)
    if "query" in event:
        return f"{SEARCH}: {event['query']}"
    return f"{event['verb']}: {event['item']}" if event.get("verb") else str(event["item"])


def examples(recommender: Recommender, count: int = 6, events: int = 4, seed: int = 0) -> list[tuple[str, str]]:
    """Return (name, lines) of made-up histories: items that read alike, of nobody in particular.

    Args:
        recommender: whose catalogue.
        count: how many.
        events: length of each.
        seed: of the choice.
    """
    offer = recommender.catalog.offer
    catalogue, texts = recommender.catalog.retrieval.catalogue, offer.space.texts
    places = np.flatnonzero(offer.offered)
    found: dict[str, str] = {}
    for place in np.random.default_rng(seed).permutation(places).tolist():
        record = catalogue.records[place]
        near = (texts[places] @ texts[place]).argsort(descending=True)[:events].tolist()
        titles = [str(catalogue.records[places[row]].get("title") or "") for row in near]
        name = _last(str(record.get("category") or record.get("title") or ""))
        if all(titles) and name:
            found.setdefault(name, "\n".join(titles))
        if len(found) == count:
            break
    return list(found.items())


def titles(recommender: Recommender, most: int) -> list[tuple[str, str]]:
    """Return (title, id) of the items on offer, sorted; none where there are more than ``most``: no box holds them."""
    if len(recommender.catalog) > most:
        return []
    catalogue = recommender.catalog.retrieval.catalogue
    places: Sequence[int] = np.flatnonzero(catalogue.offered).tolist()
    return sorted(
        (str(catalogue.records[place].get("title") or catalogue.keys[place]), catalogue.keys[place]) for place in places
    )


def _last(path: str) -> str:
    """Return the narrowest of nested categories."""
    return re.split(r"\s*[>|/]\s*", path.strip())[-1]
