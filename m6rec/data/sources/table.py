"""Any log of a user: a csv, json lines or parquet file whose columns are mapped by flags.

This module knows files and column names; it knows nothing of ids, splits and the dataset folder.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from m6rec.data.chunk import Chunk
from m6rec.data.readers import FORMATS, read_csv, read_file, read_jsonl, read_parquet
from m6rec.errors import DataError

USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "user": ("userid", "user", "uid", "customerid", "customer", "reviewerid", "visitorid", "memberid", "accountid"),
    "item": ("itemid", "item", "iid", "movieid", "productid", "product", "parentasin", "asin", "sku", "videoid",
             "bookid", "trackid", "songid", "newsid", "articleid", "goodsid"),
    "time": ("timestamp", "time", "datetime", "ts", "unixtime", "unixreviewtime", "eventtime", "createdat", "date"),
    "event": ("event", "eventtype", "verb", "action", "behavior", "behaviour", "behaviortype"),
    "value": ("rating", "value", "overall", "stars", "score"),
    "query": ("query", "searchquery", "searchterm", "keywords"),
    "title": ("title", "itemtitle", "producttitle", "itemname", "productname", "name"),
    "brand": ("brand", "brandname", "manufacturer", "store"),
    "category": ("category", "categories", "categorypath", "maincategory", "genres", "genre", "department"),
    "description": ("description", "desc", "overview", "abstract", "plot"),
    "price": ("price", "cost"),
}  # fmt: skip
"""Field -> column names it is found under without a flag; compared in lower case without ``_``, ``-`` and blanks."""

EVENT_FIELDS = ("user", "item", "time", "event", "value", "query", "split_column")
EVENT_NAMES = ("user", "item", "time", "verb", "value", "query", "split")
ITEM_FIELDS = ("title", "brand", "category", "description", "price")


@dataclass(frozen=True)
class TableConfig:
    """Where the log is and which of its columns mean what.

    A column flag that is not given is found by its usual names (``user_id``, ``movieId``, ``timestamp``, ...); one that
    is empty (``--price ""``) leaves its column an attribute. Every other column is kept as an attribute.
    """

    path: str
    """The log: one event a row. Plain or .gz."""
    items: str | None = None
    """File of items, one a row (csv, tsv, jsonl or parquet); without it the log's own item columns are used."""
    users: str | None = None
    """File of users, one a row; all its columns become attributes."""
    user: str | None = None
    """Column with the user's key."""
    item: str | None = None
    """Column with the item's key; may be empty in rows with a query."""
    time: str | None = None
    """Column with the time: Unix seconds or milliseconds, or ISO dates. Without one the order of the file counts."""
    event: str | None = None
    """Column with what happened: click, buy, watch, search, ..."""
    value: str | None = None
    """Column with a rating or weight."""
    query: str | None = None
    """Column with the words of a search."""
    label: str | None = None
    """Column with 1 where something shown was taken and 0 where not: the log is one of impressions, and its rows with 1
    are the events. Never guessed."""
    split_column: str | None = None
    """Column with train, valid or test, for a dataset with split=given. Never guessed."""
    title: str | None = None
    """Column with the item's title."""
    brand: str | None = None
    """Column with the item's brand."""
    category: str | None = None
    """Column with the item's category or path of categories."""
    description: str | None = None
    """Column with the item's description."""
    price: str | None = None
    """Column with the item's price."""
    delimiter: str | None = None
    """Delimiter of csv files; sniffed where not given. No effect on other formats."""
    domain: str = "default"
    """Data template that puts the records into words."""
    licence: str = "unknown"
    """Licence or terms of the data, in words; kept in the manifest."""


class TableSource:
    """A log in one file, with or without a file of items and one of users.

    Args:
        config: paths and columns.
    """

    Config = TableConfig
    config: TableConfig
    name = "table"

    def __init__(self, config: TableConfig) -> None:
        self.config = config

    @property
    def licence(self) -> str:
        """Licence, as the user gave it."""
        return self.config.licence

    @property
    def domain(self) -> str:
        """Data template, as the user gave it."""
        return self.config.domain

    def read(self, path: str) -> Iterator[Chunk]:
        """Yield the rows of a file in the source's own format."""
        raise NotImplementedError

    def events(self) -> Iterator[pa.Table]:
        """Yield the log's events; with ``label`` only what was taken."""
        for chunk, columns in self._log():
            table = _mapped(
                chunk, {name: columns.get(field) for field, name in zip(EVENT_FIELDS, EVENT_NAMES, strict=True)}
            )
            table = _with_extras(table, chunk, {*columns.values(), self.config.label}, EVENT_NAMES)
            yield table.filter(pc.equal(chunk.integer(self.config.label), 1)) if self.config.label else table

    def items(self) -> Iterator[pa.Table]:
        """Yield the file of items, or the log's own item columns."""
        if self.config.items is None:
            yield from self._items_of_log()
            return
        for chunk, columns in self._records(self.config.items, "item", ITEM_FIELDS):
            table = _mapped(chunk, {"item": columns["item"], **{field: columns.get(field) for field in ITEM_FIELDS}})
            yield _with_extras(table, chunk, set(columns.values()), ("item", *ITEM_FIELDS))

    def users(self) -> Iterator[pa.Table]:
        """Yield the file of users, where there is one."""
        if self.config.users is None:
            return
        for chunk, columns in self._records(self.config.users, "user", ()):
            yield _with_extras(_mapped(chunk, {"user": columns["user"]}), chunk, {columns["user"]}, ("user",))

    def impressions(self) -> Iterator[pa.Table]:
        """Yield every row of a log with labels; nothing of another log."""
        if not self.config.label:
            return
        for chunk, columns in self._log():
            labels = chunk.require(self.config.label, chunk.integer(self.config.label), "is empty, expected 0 or 1")
            names = {"user": "user", "item": "item", "time": "time", "split": "split_column"}
            table = _mapped(chunk, {name: columns.get(field) for name, field in names.items()})
            yield table.append_column("label", labels)

    def reviews(self) -> Iterator[pa.Table]:
        """Yield nothing: a log has no reviews."""
        yield from ()

    def conversations(self) -> Iterator[dict[str, Any]]:
        """Yield nothing: a log has no dialogues."""
        yield from ()

    def _log(self) -> Iterator[tuple[Chunk, dict[str, str]]]:
        """Yield the log's chunks with their columns: field -> column name, fields of items included."""
        fields = EVENT_FIELDS if self.config.items is not None else (*EVENT_FIELDS, *ITEM_FIELDS)
        columns: dict[str, str] | None = None
        for chunk in self.read(self.config.path):
            if columns is None:
                columns = self._resolve(chunk, fields, mandatory=("user", "item"))
                if self.config.label and self.config.label not in chunk.names:
                    raise _missing(chunk, "label", self.config.label)
            _check_keys(chunk, columns)
            yield chunk, columns

    def _items_of_log(self) -> Iterator[pa.Table]:
        for chunk, columns in self._log():
            present = {field: columns[field] for field in ITEM_FIELDS if field in columns}
            if not present:
                return
            table = _mapped(chunk, {"item": columns["item"], **present})
            said = [pc.is_valid(table[name]) for name in present]
            keep = said[0]
            for column in said[1:]:
                keep = pc.or_(keep, column)
            yield table.filter(pc.and_(keep, pc.is_valid(table["item"])))

    def _records(self, path: str, key: str, fields: tuple[str, ...]) -> Iterator[tuple[Chunk, dict[str, str]]]:
        """Yield the chunks of a file of items or users with their columns; its key may also be called ``id``."""
        columns: dict[str, str] | None = None
        for chunk in self._read_any(path):
            if columns is None:
                columns = self._resolve(chunk, fields, mandatory=())
                own = getattr(self.config, key)
                column = (
                    own if own in chunk.names else _usual(chunk.names, (*USUAL_NAMES[key], "id"), set(columns.values()))
                )
                if column is None:
                    raise _missing(chunk, key, own)
                columns[key] = column
            chunk.require(columns[key], chunk.text(columns[key]), f"is empty, expected the key of the {key}")
            yield chunk, columns

    def _read_any(self, path: str) -> Iterator[Chunk]:
        endings = {ending.lstrip(".").lower() for ending in Path(path).suffixes}
        return read_file(path, delimiter=self.config.delimiter) if endings & set(FORMATS) else self.read(path)

    def _resolve(self, chunk: Chunk, fields: Iterable[str], mandatory: Iterable[str]) -> dict[str, str]:
        """Return field -> column: what the flags say, then the usual names among the columns that are left.

        Raises:
            DataError: a flag names no column, or a mandatory field has none.
        """
        asked = {field: getattr(self.config, field) for field in fields}
        columns = {field: name for field, name in asked.items() if name}
        for field, name in columns.items():
            if name not in chunk.names:
                raise _missing(chunk, field, name)
        taken = {flag for flag in dataclasses.asdict(self.config).values() if isinstance(flag, str)}
        for field, name in asked.items():
            if name is None and (found := _usual(chunk.names, USUAL_NAMES.get(field, ()), taken)):
                columns[field] = found
                taken.add(found)
        for field in mandatory:
            if field not in columns:
                raise _missing(chunk, field, None)
        return columns


class CsvSource(TableSource):
    """A log as csv or tsv; the delimiter is sniffed."""

    name = "csv"

    def read(self, path: str) -> Iterator[Chunk]:
        """Yield the rows of a csv file."""
        return read_csv(path, delimiter=self.config.delimiter)


class JsonLinesSource(TableSource):
    """A log as one JSON object a line."""

    name = "jsonl"

    def read(self, path: str) -> Iterator[Chunk]:
        """Yield the rows of a file of JSON lines."""
        return read_jsonl(path)


class ParquetSource(TableSource):
    """A log as parquet."""

    name = "parquet"

    def read(self, path: str) -> Iterator[Chunk]:
        """Yield the rows of a parquet file."""
        return read_parquet(path)


_CONVERSIONS: dict[str, Callable[[Chunk, str], pa.Array]] = {
    "time": Chunk.time,
    "value": Chunk.number,
    "price": Chunk.number,
}


def _mapped(chunk: Chunk, columns: Mapping[str, str | None]) -> pa.Table:
    """Return the columns under our names, converted, so that a bad value is reported with its file and row."""
    return pa.table(
        {
            name: _CONVERSIONS.get(name, Chunk.text)(chunk, column)
            for name, column in columns.items()
            if column is not None
        }
    )


def _with_extras(table: pa.Table, chunk: Chunk, used: set[str | None], ours: tuple[str, ...]) -> pa.Table:
    """Append the columns that mean nothing to us; one that bears a name of ours is called ``other_NAME``."""
    for name in chunk.names:
        if name not in used:
            column = chunk.text(name) if pa.types.is_binary(chunk.table[name].type) else chunk.table[name]
            table = table.append_column(f"other_{name}" if name in ours else name, column)
    return table


def _check_keys(chunk: Chunk, columns: dict[str, str]) -> None:
    chunk.require(columns["user"], chunk.text(columns["user"]), "is empty, expected the key of a user in every row")
    empty = pc.is_null(chunk.text(columns["item"]))
    if "query" in columns:
        empty = pc.and_(empty, pc.is_null(chunk.text(columns["query"])))
    if pc.any(empty).as_py():
        chunk.fail(columns["item"], empty.index(True).as_py(), "is empty, expected the key of an item (or a query)")


def _usual(names: Iterable[str], usual: tuple[str, ...], taken: set[str]) -> str | None:
    free = {
        name.lower().replace("_", "").replace("-", "").replace(" ", ""): name for name in names if name not in taken
    }
    return next((free[name] for name in usual if name in free), None)


def _missing(chunk: Chunk, field: str, name: str | None) -> DataError:
    wanted = f"no column {name!r} for {field}" if name else f"no column for {field}"
    columns, flag = ", ".join(chunk.names), "--" + field.replace("_", "-")
    return DataError(f"{chunk.path}: {wanted}; it has: {columns}; say which one it is with {flag} COLUMN")
