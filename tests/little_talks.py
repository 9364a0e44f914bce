"""A few made-up dialogues about films: whoever asks for a kind is recommended one of it; two films share a title."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.store import Dataset

KINDS = ("comedy", "drama", "crime")
# (key, title, year, kind): `f3` and `f7` are two films of one title.
FILMS = [
    ("f0", "Red Lamp", "1991", "comedy"),
    ("f1", "Blue Chair", "1994", "drama"),
    ("f2", "It", "2017", "crime"),
    ("f3", "The Green Book", "1990", "comedy"),
    ("f4", "Warm Winter", "2001", "drama"),
    ("f5", "Soft Shoes", "2005", "crime"),
    ("f6", "A Summer Dress", "1999", "comedy"),
    ("f7", "The Green Book", "2018", "drama"),
    ("f8", "Phone Case", "2011", "crime"),
    ("f9", "Ten Hours", "2012", "comedy"),
    ("f10", "Red Lamp Two", "1995", "comedy"),
    ("f11", "Bought", "2009", "crime"),
]


class Talks:
    """A source of dialogues."""

    Config = config = PrepareConfig()
    name, licence, domain = "talks", "Apache-2.0", "movies"

    def items(self) -> Iterator[pa.Table]:
        names = ("item", "title", "year", "category")
        yield pa.table({name: [film[place] for film in FILMS] for place, name in enumerate(names)})

    def events(self) -> Iterator[pa.Table]:
        rows = [
            {"user": talk["id"], "item": item, "split": talk["split"]}
            for talk in self.conversations()
            for turn in talk["turns"]
            for item in turn["items"]
        ]
        yield pa.Table.from_pylist(rows)

    def conversations(self) -> Iterator[dict[str, Any]]:
        for number in range(40):
            kind = KINDS[number % 3]
            films = [film for film in FILMS if film[3] == kind]
            liked, best, other = (films[(number + step) % len(films)] for step in range(3))
            split = "test" if number % 10 == 0 else "valid" if number % 10 == 1 else "train"
            yield {"id": f"d{number}", "split": split, "turns": list(self._turns(kind, liked, best, other))}

    def _turns(self, kind: str, liked: Any, best: Any, other: Any) -> Iterator[dict[str, Any]]:
        yield {"speaker": "SYSTEM", "text": "What do you like?", "items": []}
        yield {"speaker": "USER", "text": f"A {kind}, such as {liked[1]} ({liked[2]})", "items": [liked[0]]}
        yield {"speaker": "SYSTEM", "text": f"Then watch {best[1]}, it is warm.", "items": [best[0]]}
        yield {"speaker": "USER", "text": "Another?", "items": []}
        yield {"speaker": "SYSTEM", "text": f"{other[1]} or {liked[1]}.", "items": [other[0], liked[0]]}

    def users(self) -> Iterator[pa.Table]:
        return iter(())

    reviews = impressions = users


def prepare_talks(folder: Path) -> Dataset:
    """Return the dialogues as a dataset."""
    prepare(Talks(), folder, PrepareConfig(split="given"))
    return Dataset.open(folder)
