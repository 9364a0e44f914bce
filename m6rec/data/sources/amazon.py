"""Amazon reviews in three layouts: S3-Rec's sequences, LlamaRec's split, and McAuley's raw files of any year.

All three name items by asin, so datasets made from different layouts can be joined. The first two have an order but no
times. Knows no other dataset.
"""

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from m6rec.data.chunk import Chunk
from m6rec.data.readers import read_jsonl
from m6rec.data.sources.folders import FolderSource, find, with_columns
from m6rec.data.sources.lines import open_text
from m6rec.errors import DataError, RowError

Layout = Literal["auto", "s3rec", "llamarec", "mcauley"]
_BLOCK_ROWS = 1 << 14
# What the same thing is called in the editions of 2014, 2018 and 2023.
_REVIEW = {
    "user": ("reviewerID", "user_id"),
    "item": ("parent_asin", "asin"),
    "text": ("reviewText", "text"),
    "summary": ("summary", "title"),
    "value": ("overall", "rating"),
    "time": ("unixReviewTime", "timestamp"),
}
_META = {
    "item": ("parent_asin", "asin"),
    "title": ("title",),
    "brand": ("brand", "store"),
    "category": ("categories", "category", "main_category"),
    "description": ("description",),
    "price": ("price",),
}


@dataclass(frozen=True)
class AmazonConfig:
    """Where the files are, and which."""

    path: str
    """The folder. Changes results."""
    layout: Layout = "auto"
    """Which files to read: s3rec (NAME.txt, items.jsonl), llamarec (NAME.sequences.jsonl with its own split,
    NAME.items.jsonl; brand and category from items.jsonl), mcauley (reviews*.json, meta*.json). auto takes the first of
    llamarec, s3rec, mcauley that the folder has. Changes results."""


class Amazon(FolderSource):
    """Amazon reviews as sequences (S3-Rec, LlamaRec) or as McAuley's raw reviews with metadata.

    Source: McAuley et al. 2015; He and McAuley 2016; Ni et al. 2019; Hou et al. 2024.
    """

    Config = AmazonConfig
    name = "amazon"
    licence = "Amazon review data (McAuley et al.): no formal licence, offered for research with a request to cite"
    domain = "beauty"

    def __init__(self, config: AmazonConfig) -> None:
        self.config = config

    @cached_property
    def layout(self) -> str:
        """The layout that was asked for, or the one found."""
        if self.config.layout != "auto":
            return self.config.layout
        patterns = {"llamarec": "*.sequences.jsonl*", "s3rec": "*.txt*", "mcauley": "*reviews*.json*"}
        found = (name for name, pattern in patterns.items() if self._all(pattern))
        layout = next(found, None) or ("mcauley" if self._all("*_5.json*") else None)
        if layout is None:
            raise DataError(f"{self.config.path} has none of {', '.join(patterns.values())}; is it the right folder?")
        return layout

    def events(self) -> Iterator[pa.Table]:
        """Yield purchases (a review is a purchase) in file order."""
        match self.layout:
            case "s3rec":
                return self._s3rec_events()
            case "llamarec":
                return self._llamarec_events()
            case _:
                return (table.drop_columns(["text", "summary"]) for table in self._mcauley("buy"))

    def items(self) -> Iterator[pa.Table]:
        """Yield titles, brands and categories; the raw metadata also gives descriptions and prices."""
        match self.layout:
            case "s3rec":
                path = find(self.config.path, "items.jsonl")
                return iter(()) if path is None else map(_described, with_columns(read_jsonl(path), "asin", "title"))
            case "llamarec":
                return self._llamarec_items()
            case _:
                paths = self._all("meta*.json*")
                return (table for path in paths for table in _raw(path, _META, ("item",), _meta_row))

    def reviews(self) -> Iterator[pa.Table]:
        """Yield the raw layout's reviews; the others have none."""
        if self.layout == "mcauley":
            for table in self._mcauley(None):
                yield table.filter(pc.is_valid(table["text"]))

    def _all(self, pattern: str) -> list[Path]:
        find(self.config.path)  # says so when the folder is not there
        return sorted(path for path in Path(self.config.path).expanduser().glob(pattern) if path.is_file())

    def _only(self, pattern: str) -> Path:
        paths = [path for path in self._all(pattern) if "_sample" not in path.name]
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths) or "none"
            raise DataError(f"{self.config.path}: expected one file {pattern}, got {names}")
        return paths[0]

    # ---- S3-Rec -----------------------------------------------------------------------------------------------

    def _s3rec_events(self) -> Iterator[pa.Table]:
        path, keys = self._only("*.txt*"), self._s3rec_keys()
        with open_text(path) as lines:
            row = 1
            while block := list(islice(lines, _BLOCK_ROWS)):
                users: list[str] = []
                items: list[str] = []
                for offset, line in enumerate(block):
                    user, *sequence = line.split() or [""]
                    if not sequence:
                        raise RowError(path, row + offset, "items", f"got {line.strip()!r:.60}, expected user item ...")
                    users.extend([user] * len(sequence))
                    items.extend(_key(keys, item, path, row + offset) for item in sequence)
                yield pa.table({"user": users, "item": items, "verb": ["buy"] * len(users)})
                row += len(block)

    def _s3rec_keys(self) -> dict[str, str] | None:
        """Return S3-Rec id -> asin, or ``None`` where there is no file of items (the ids are the keys then)."""
        path = find(self.config.path, "items.jsonl")
        return None if path is None else _pairs(path, "id", "asin")

    # ---- LlamaRec ---------------------------------------------------------------------------------------------

    def _llamarec_events(self) -> Iterator[pa.Table]:
        keys = _pairs(self._only("*.items.jsonl*"), "i", "asin")
        chunks = with_columns(read_jsonl(self._only("*.sequences.jsonl*")), "user", "train", "val", "test")
        for chunk in chunks:
            columns: dict[str, list[str]] = {"user": [], "item": [], "split": []}
            for offset, row in enumerate(chunk.table.to_pylist()):
                parts = (("train", row["train"] or []), ("valid", [row["val"]]), ("test", [row["test"]]))
                for split, sequence in parts:
                    for item in sequence:
                        columns["user"].append(str(row["user"]))
                        columns["item"].append(_key(keys, str(item), chunk.path, chunk.row + offset))
                        columns["split"].append(split)
            yield pa.table({**columns, "verb": ["buy"] * len(columns["user"])})

    def _llamarec_items(self) -> Iterator[pa.Table]:
        extra: dict[str, dict[str, Any]] = {}
        path = find(self.config.path, "items.jsonl")
        if path is not None:
            for chunk in with_columns(read_jsonl(path), "asin", "brand", "categories"):
                extra.update((row["asin"], row) for row in chunk.table.to_pylist())
        for chunk in with_columns(read_jsonl(self._only("*.items.jsonl*")), "asin", "title"):
            rows = chunk.table.select(["asin", "title"]).to_pylist()
            joined = [{**extra.get(row["asin"], {"brand": None, "categories": None}), **row} for row in rows]
            yield _described(Chunk(pa.Table.from_pylist(joined), chunk.path, chunk.row))

    # ---- McAuley ----------------------------------------------------------------------------------------------

    def _mcauley(self, verb: str | None) -> Iterator[pa.Table]:
        paths = self._all("*reviews*.json*") or self._all("*_5.json*")
        if not paths:
            raise DataError(f"{self.config.path} has no *reviews*.json(l), plain or .gz; is it the right folder?")
        for path in paths:
            for table in _raw(path, _REVIEW, ("user", "item"), None):
                yield table if verb is None else table.append_column("verb", pa.array([verb] * len(table)))


def _key(keys: Mapping[str, str] | None, item: str, path: object, row: int) -> str:
    if keys is None:
        return item
    if item not in keys:
        raise RowError(path, row, "item", f"got id {item!r}, expected one of the {len(keys)} ids in the file of items")
    return keys[item]


def _pairs(path: Path, key: str, value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for chunk in with_columns(read_jsonl(path), key, value):
        columns = (chunk.require(name, chunk.text(name), "is empty, expected an id") for name in (key, value))
        found.update(zip(*(column.to_pylist() for column in columns), strict=True))
    return found


def _described(chunk: Chunk) -> pa.Table:
    """Return our columns of a file with asin, title, brand and a list of categories."""
    paths = chunk.table["categories"].to_pylist() if "categories" in chunk.names else [None] * len(chunk)
    return pa.table(
        {
            "item": chunk.require("asin", chunk.text("asin"), "is empty, expected an item"),
            "title": chunk.text("title"),
            "brand": chunk.text("brand"),
            "category": pa.array([_path(path) for path in paths], pa.string()),
        }
    )


def _path(categories: Any) -> str | None:
    """Return a category path; of several paths (2014) the longest.

    >>> _path([["Beauty"], ["Beauty", "Hair Care"]])
    'Beauty > Hair Care'
    """
    if isinstance(categories, list) and categories and isinstance(categories[0], list):
        categories = max(categories, key=len)
    if isinstance(categories, list):
        return " > ".join(str(step) for step in categories if step) or None
    return str(categories) if categories else None


def _meta_row(row: dict[str, Any]) -> dict[str, Any]:
    """Bring one row of metadata into our form: paths, joined descriptions, prices as numbers where they are some."""
    description = row["description"]
    price = str(row["price"] or "").strip().lstrip("$").replace(",", "")
    return {
        **row,
        "category": _path(row["category"]),
        "description": " ".join(map(str, description)) if isinstance(description, list) else description,
        "price": float(price) if price.replace(".", "", 1).isdigit() else None,
    }


def _raw(
    path: Path,
    fields: Mapping[str, tuple[str, ...]],
    mandatory: tuple[str, ...],
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> Iterator[pa.Table]:
    """Yield a raw file under our names, with reviews' numbers and times checked."""
    row = 1
    with open_text(path) as lines:
        while block := list(islice(lines, _BLOCK_ROWS)):
            rows = [_pick(_loose(line, path, row + offset), fields) for offset, line in enumerate(block)]
            columns = [convert(entry) for entry in rows] if convert else rows
            texts = {name: [entry[name] for entry in columns] for name in fields}
            chunk = Chunk(pa.table({name: _column(values) for name, values in texts.items()}), str(path), row)
            for name in mandatory:
                chunk.require(name, chunk.text(name), f"is empty, expected an {name}")
            yield pa.table({name: _typed(chunk, name) for name in fields})
            row += len(block)


def _pick(entry: Mapping[str, Any], fields: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    present = {name: [entry[word] for word in names if entry.get(word)] for name, names in fields.items()}
    return {name: values[0] if values else None for name, values in present.items()}


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    return pa.array(values if len(kinds) < 2 else [None if value is None else str(value) for value in values])


def _typed(chunk: Chunk, name: str) -> pa.Array:
    if name == "time":
        return chunk.time(name)
    return chunk.number(name).cast(pa.float32()) if name in ("value", "price") else chunk.text(name)


def _loose(line: str, path: Path, row: int) -> dict[str, Any]:
    """Read one line: JSON, or the Python literals of the 2014 metadata."""
    try:
        value = json.loads(line)
    except ValueError:
        try:
            value = ast.literal_eval(line)
        except (ValueError, SyntaxError) as error:
            raise RowError(path, row, "*", f"got a line that is neither JSON nor a Python literal: {error}") from error
    if not isinstance(value, dict):
        raise RowError(path, row, "*", f"got {type(value).__name__}, expected one object a line")
    return value
