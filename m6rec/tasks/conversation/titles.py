"""Titles in free text: which items of a catalogue a turn names, and where. Knows no model."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from m6rec.tasks.catalogue import Catalogue

_WORD = re.compile(r"\w+")
_YEAR = re.compile(r"\s*\((\d{4})\)")
_SENTENCE_START = re.compile(r"(?:^|[.!?\n])\W*$")


@dataclass(frozen=True)
class Found:
    """A title in a text.

    Args:
        item: position in the catalogue.
        start: first character.
        stop: behind the last one, a year in brackets included.
    """

    item: int
    start: int
    stop: int


class Titles:
    """Finds titles, the longest first; of several items with one title the year decides, then ``popularity``.

    A title of one word ("It", "Up") counts only where it is written as one: with its year, or with a capital inside a
    sentence.

    Args:
        catalogue: whose titles.
        popularity: ``[items]``.
    """

    def __init__(self, catalogue: Catalogue, popularity: Sequence[float]) -> None:
        self._catalogue, self._popularity = catalogue, popularity
        self._places: dict[tuple[str, ...], list[int]] = {}
        for place, record in enumerate(catalogue.records):
            if words := tuple(word for word, _ in _words(str(record.get("title") or ""))):
                self._places.setdefault(words, []).append(place)
        self._longest = max(map(len, self._places), default=0)

    def find(self, text: str, among: Collection[int] | None = None) -> list[Found]:
        """Return the titles in ``text``, in order, none overlapping another.

        Args:
            text: what somebody said.
            among: the only items looked for; they are known to be named, so that one word is enough.
        """
        words, found, number = _words(text), list[Found](), 0
        while number < len(words):
            match = self._at(text, words, number, among)
            if match is None:
                number += 1
            else:
                found.append(match)
                number = next((later for later, (_, at) in enumerate(words) if at.start() >= match.stop), len(words))
        return found

    def _at(
        self, text: str, words: list[tuple[str, re.Match[str]]], first: int, among: Collection[int] | None
    ) -> Found | None:
        """Return the longest title that begins with a word."""
        for length in range(min(self._longest, len(words) - first), 0, -1):
            places = self._places.get(tuple(word for word, _ in words[first : first + length]), [])
            places = [place for place in places if self._allowed(place, among)]
            start, stop = words[first][1].start(), words[first + length - 1][1].end()
            year = _YEAR.match(text, stop)
            if places and (among is not None or year or length > 1 or _stands_out(text, start)):
                return Found(self._best(places, year), start, year.end() if year else stop)
        return None

    def _allowed(self, place: int, among: Collection[int] | None) -> bool:
        return place in among if among is not None else bool(self._catalogue.offered[place])

    def _best(self, places: list[int], year: re.Match[str] | None) -> int:
        told = year.group(1) if year else None
        # New items are not counted yet.
        counted = len(self._popularity)
        return max(
            places,
            key=lambda place: (
                told is not None and _year(self._catalogue.records[place]) == told,
                self._popularity[place] if place < counted else 0.0,
                -place,
            ),
        )


def _words(text: str) -> list[tuple[str, re.Match[str]]]:
    return [(match.group().casefold(), match) for match in _WORD.finditer(text)]


def _stands_out(text: str, start: int) -> bool:
    return text[start].isupper() and _SENTENCE_START.search(text[:start]) is None


def _year(record: Any) -> str | None:
    year = record.get("year")
    return None if year is None else str(year)[:4]
