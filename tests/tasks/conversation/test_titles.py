"""Titles in free text: the longest, the right year, and no film where a word is only a word."""

import numpy as np
import pytest

from m6rec.tasks.catalogue import Catalogue
from m6rec.tasks.conversation.titles import Titles
from tests.little_talks import FILMS


@pytest.fixture
def titles():
    records = [{"title": title, "year": year} for _, title, year, _ in FILMS]
    count = len(FILMS)
    keys = [film[0] for film in FILMS]
    catalogue = Catalogue(keys, records, [""] * count, np.zeros(count, np.int64), np.ones(count, bool))
    return Titles(catalogue, [2.0 if key == "f3" else 1.0 for key in keys])


def found(titles, text, among=None):
    return [(FILMS[each.item][0], text[each.start : each.stop]) for each in titles.find(text, among)]


def test_the_longest_title_wins_and_none_overlaps(titles):
    assert found(titles, "red lamp two, then RED LAMP.") == [("f10", "red lamp two"), ("f0", "RED LAMP")]


def test_the_year_tells_films_of_one_title_apart(titles):
    assert found(titles, "The Green Book (2018)?") == [("f7", "The Green Book (2018)")]
    assert found(titles, "The Green Book (1990)?") == [("f3", "The Green Book (1990)")]
    assert found(titles, "the green book") == [("f3", "the green book")]  # the better known


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is fine", []),
        ("It is fine. It was", []),
        ("I saw It yesterday", ["f2"]),
        ("it (2017) was fine", ["f2"]),
        ("I bought it", []),
    ],
)
def test_a_word_is_a_title_only_where_it_is_written_as_one(titles, text, expected):
    assert [key for key, _ in found(titles, text)] == expected


def test_one_word_is_enough_where_it_is_known_to_be_named(titles):
    assert found(titles, "then watch it, or red lamp", frozenset({2})) == [("f2", "it")]


def test_odd_texts(titles):
    for text in ("", "()", "İ ß ﬁ", "(2018)"):
        assert titles.find(text) == []
