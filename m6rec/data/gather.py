"""First pass of prepare: stream a source, check every row, turn keys into codes, and spread the rows over buckets.

This module knows sources and buckets; it knows nothing of filters, splits, ids and the dataset folder.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m6rec.data import schema
from m6rec.data.attributes import pack
from m6rec.data.buckets import Buckets
from m6rec.data.chunk import Chunk
from m6rec.data.keys import Keys
from m6rec.data.sources.base import Source
from m6rec.data.split import NAMES
from m6rec.errors import DataError

Watch = Callable[[Iterable[pa.Table], str], Iterator[pa.Table]]
"""Passes tables through and shows how far they are: ``watch(tables, what)``."""


class Records:
    """Describing rows of keys (items, users) on disk. The first record of a key wins.

    Args:
        keys: gives each key its code; keys that only the log knows have no record.
        folder: folder of the buckets.
    """

    def __init__(self, keys: Keys, folder: Path) -> None:
        self.keys, self.buckets = keys, Buckets(folder)
        self.num_repeated = 0
        self._listed = np.zeros(0, dtype=np.bool_)

    @property
    def listed(self) -> NDArray[np.bool_]:
        """``[num_keys]`` whether each code has a record."""
        self._grow()
        return self._listed[: len(self.keys)]

    def add(self, keys: pa.Array, table: pa.Table) -> None:
        """Append the rows of ``table`` whose key has no record yet; ``keys`` is ``[num_rows]`` without nulls."""
        codes = self.keys.encode(keys)
        self._grow()
        fresh = np.zeros(len(codes), dtype=np.bool_)
        fresh[np.unique(codes, return_index=True)[1]] = True
        fresh &= ~self._listed[codes]
        self._listed[codes] = True
        self.num_repeated += int(len(codes) - fresh.sum())
        table = table.append_column("code", pa.array(codes))
        self.buckets.add(table.filter(pa.array(fresh)), self.keys.places(codes[fresh]))

    def _grow(self) -> None:
        if len(self.keys) > len(self._listed):
            grown = np.zeros(2 * len(self.keys), dtype=np.bool_)
            grown[: len(self._listed)] = self._listed
            self._listed = grown


@dataclass
class Gathered:
    """Everything a source gave, checked and coded, on disk. ``user`` and ``item`` columns hold codes."""

    users: Keys
    items: Keys
    user_records: Records
    item_records: Records
    events: Buckets
    impressions: Buckets
    reviews: Buckets
    has_times: bool = False
    """Whether any event came with a time."""
    has_splits: bool = False
    """Whether any event came with a split of its own."""

    def buckets(self) -> tuple[Buckets, ...]:
        """Return every set of buckets."""
        return (self.events, self.impressions, self.reviews, self.user_records.buckets, self.item_records.buckets)


def gather(source: Source, folder: Path, seed: int, watch: Watch) -> Gathered:
    """Stream ``source`` into buckets under ``folder``.

    Raises:
        DataError: a row or column that cannot be used; names file, row and field.
    """
    users, items = Keys("user", seed), Keys("item", seed)
    gathered = Gathered(
        users=users,
        items=items,
        user_records=Records(users, folder / "users"),
        item_records=Records(items, folder / "items"),
        events=Buckets(folder / "events"),
        impressions=Buckets(folder / "impressions"),
        reviews=Buckets(folder / "reviews"),
    )
    try:
        for chunk in _chunks(source, watch(source.items(), "items"), "items"):
            _add_items(gathered, chunk)
        for chunk in _chunks(source, watch(source.users(), "users"), "users"):
            _add_users(gathered, chunk)
        for chunk in _chunks(source, watch(source.events(), "events"), "events"):
            _add_events(gathered, chunk)
        for chunk in _chunks(source, watch(source.impressions(), "impressions"), "impressions"):
            _add_impressions(gathered, chunk)
        for chunk in _chunks(source, watch(source.reviews(), "reviews"), "reviews"):
            _add_reviews(gathered, chunk)
    except BaseException:
        for buckets in gathered.buckets():
            buckets.abandon()
        raise
    for buckets in gathered.buckets():
        buckets.close()
    return gathered


def _chunks(source: Source, tables: Iterable[pa.Table], what: str) -> Iterator[Chunk]:
    row = 1
    for table in tables:
        if len(table):
            yield Chunk(table, f"{what} of source {source.name!r}", row)
        row += len(table)


def _keys(chunk: Chunk, field: str) -> pa.Array:
    if field not in chunk.names:
        raise DataError(f"{chunk.path}: no column {field!r}; got {', '.join(chunk.names)}")
    return chunk.require(field, chunk.text(field), f"is empty, expected the key of {field} in every row")


def _extras(chunk: Chunk, known: Iterable[str]) -> pa.Array:
    taken = set(known)
    return pack(chunk.table, [name for name in chunk.names if name not in taken])


def _float32(chunk: Chunk, field: str) -> pa.Array:
    return chunk.number(field).cast(pa.float32())


def _add_items(gathered: Gathered, chunk: Chunk) -> None:
    columns = {name: chunk.text(name) for name in schema.ITEM_TEXTS}
    columns["price"] = _float32(chunk, "price")
    columns["attributes"] = _extras(chunk, ["item", *columns])
    gathered.item_records.add(_keys(chunk, "item"), pa.table(columns))


def _add_users(gathered: Gathered, chunk: Chunk) -> None:
    gathered.user_records.add(_keys(chunk, "user"), pa.table({"attributes": _extras(chunk, ["user"])}))


EVENT_FIELDS = ("user", "item", "time", "verb", "value", "query", "split")


def _add_events(gathered: Gathered, chunk: Chunk) -> None:
    items, queries = chunk.text("item"), chunk.text("query")
    empty = items.is_null().to_numpy(zero_copy_only=False) & queries.is_null().to_numpy(zero_copy_only=False)
    if empty.any():
        chunk.fail("item", empty.argmax(), "is empty, expected the key of an item (only a search may lack one)")
    times, splits = chunk.integer("time"), _splits(chunk)
    gathered.has_times |= times.null_count < len(times)
    gathered.has_splits |= splits.null_count < len(splits)
    users = gathered.users.encode(_keys(chunk, "user"))
    table = pa.table(
        {
            "user": users,
            "item": gathered.items.encode(items),
            "time": times,
            "verb": chunk.text("verb"),
            "value": _float32(chunk, "value"),
            "query": queries,
            "split": splits,
            "attributes": _extras(chunk, EVENT_FIELDS),
        }
    )
    gathered.events.add(table, gathered.users.places(users))


def _splits(chunk: Chunk) -> pa.Array:
    encoded = chunk.text("split").dictionary_encode()
    codes = [NAMES.get(word.lower()) for word in encoded.dictionary.to_pylist()]
    if None in codes:
        index = encoded.indices.index(codes.index(None)).as_py()
        word = encoded.dictionary[codes.index(None)].as_py()
        chunk.fail("split", index, f"got {word!r}, expected train, valid or test")
    return pa.array(codes, pa.int8()).take(encoded.indices)


def _add_impressions(gathered: Gathered, chunk: Chunk) -> None:
    labels = chunk.require("label", chunk.integer("label"), "is empty, expected 0 or 1")
    wrong = ~np.isin(labels.to_numpy(), (0, 1))
    if wrong.any():
        chunk.fail("label", int(wrong.argmax()), f"got {labels[wrong.argmax()]}, expected 0 (shown only) or 1 (a yes)")
    times, splits = chunk.integer("time"), _splits(chunk)
    lost = times.is_null().to_numpy(zero_copy_only=False) & splits.is_null().to_numpy(zero_copy_only=False)
    if lost.any():
        chunk.fail("time", lost.argmax(), "is empty, expected a time (or a split) for everything that was shown")
    users = gathered.users.encode(_keys(chunk, "user"))
    items = gathered.items.encode(_keys(chunk, "item"))
    columns = {"user": users, "item": items, "time": times, "label": labels.cast(pa.int8()), "split": splits}
    gathered.impressions.add(pa.table(columns), gathered.users.places(users))


def _add_reviews(gathered: Gathered, chunk: Chunk) -> None:
    users = gathered.users.encode(_keys(chunk, "user"))
    table = pa.table(
        {
            "user": users,
            "item": gathered.items.encode(_keys(chunk, "item")),
            "text": chunk.text("text"),
            "summary": chunk.text("summary"),
            "value": _float32(chunk, "value"),
            "time": chunk.integer("time"),
            "reason": chunk.text("reason"),
            "split": _splits(chunk),
        }
    )
    gathered.reviews.add(table, gathered.users.places(users))
