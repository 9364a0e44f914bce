"""What a row can be asked: the columns that are read, and the columns that answer. Knows no file."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec.edge.folder import is_edge
from m6rec.errors import ConfigError, DataError, UnknownNameError
from m6rec.requests import History, Recommendation, read_events
from m6rec.runs import read_card, read_recipe_tree
from m6rec.serving.batch.config import BatchConfig

Row = Mapping[str, Any]
_ITEMS = pa.list_(pa.struct([("id", pa.string()), ("title", pa.string()), ("score", pa.float64())]))


@dataclass(frozen=True)
class Work:
    """One thing to ask of every row.

    Args:
        needs: columns that must be there; all but ``history`` must have a value in every row.
        takes: columns that are read where they are there.
        answer: the columns that are written.
        ask: (recommender, row, config) -> the answer's values.
        ask_all: (recommender, rows, config) -> the same for many rows, where one pass over them is cheaper.
    """

    needs: tuple[str, ...]
    takes: tuple[str, ...]
    answer: pa.Schema
    ask: Callable[[Any, Row, BatchConfig], dict[str, Any]]
    ask_all: Callable[[Any, Sequence[Row], BatchConfig], list[dict[str, Any]]] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column that is read where it is there."""
        return self.needs + self.takes

    def culprit(self, row: Row) -> str:
        """Return the column that a row could not be read for: its history, or else what is asked about it."""
        if "history" in self.needs:
            try:
                read_events(_history(row), _NothingKnown())
            except DataError:
                return "history"
        return self.needs[-1]


def _recommend(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    return {"items": _items(recommender.recommend(_history(row), config.k))}


def _retrieve(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    return {"items": _items(recommender.retrieve(_history(row), config.k))}


def _rank(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    candidates = row["candidates"]
    if isinstance(candidates, str):
        candidates = [part.strip() for part in candidates.split(";") if part.strip()]
    return {"items": _items(recommender.rank(_history(row), candidates, row.get("context")))}


def _explain(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    found = recommender.explain(_history(row), row["item"], **config.decoding)
    return {
        "text": found.text,
        "complete": found.complete,
        "events": list(found.evidence.events),
        "drops": list(found.drops),
        "attributes": list(found.evidence.attributes),
        "unsupported": list(found.evidence.unsupported),
    }


def _create(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    kind = {} if config.kind is None else {"kind": config.kind}
    (made,) = recommender.create(_history(row), item=row.get("item"), **kind, **config.decoding)
    return {"text": str(made), "complete": made.complete, "duplicate_of": made.duplicate_of}


def _generate(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    found = recommender.generate(row["text"], row.get("source") or "", **config.decoding)
    return {"answer": found.text, "complete": found.complete}


def _score(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    return {"score": recommender.score(row["text"], _history(row))}


def _chat(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    reply = recommender.chat(row["turns"], **config.decoding)
    return {"text": reply.text, "items": _items(reply.items), "confidence": reply.confidence}


def _embed(recommender: Any, row: Row, config: BatchConfig) -> dict[str, Any]:
    return _embed_all(recommender, [row], config)[0]


def _embed_all(recommender: Any, rows: Sequence[Row], config: BatchConfig) -> list[dict[str, Any]]:
    # A text is a title; what an item is called has no say in its vector.
    items = [{"title": row["item"]} if isinstance(row["item"], str) else row["item"] for row in rows]
    vectors = recommender.catalog.read([{"id": "", **item} for item in items])
    if vectors.ndim != 2:
        raise ConfigError("got a run with several vectors an item, expected one with one; embed with another run")
    return [{"vector": vector} for vector in vectors.float().tolist()]


_WRITTEN = [("text", pa.string()), ("complete", pa.bool_())]
_REASONS = [
    ("events", pa.list_(pa.int64())),
    ("drops", pa.list_(pa.float64())),
    ("attributes", pa.list_(pa.string())),
    ("unsupported", pa.list_(pa.string())),
]
_FOUND = pa.schema([("items", _ITEMS)])
WORKS = {
    "recommend": Work(("history",), (), _FOUND, _recommend),
    "retrieve": Work(("history",), (), _FOUND, _retrieve),
    "rank": Work(("history", "candidates"), ("context",), _FOUND, _rank),
    "explain": Work(("history", "item"), (), pa.schema([*_WRITTEN, *_REASONS]), _explain),
    "create": Work(("history",), ("item",), pa.schema([*_WRITTEN, ("duplicate_of", pa.string())]), _create),
    "generate": Work(("text",), ("source",), pa.schema([("answer", pa.string()), _WRITTEN[1]]), _generate),
    "score": Work(("text",), ("history",), pa.schema([("score", pa.float64())]), _score),
    "embed": Work(("item",), (), pa.schema([("vector", pa.list_(pa.float32()))]), _embed, _embed_all),
    "chat": Work(
        ("turns",), (), pa.schema([_WRITTEN[0], ("items", _ITEMS), ("confidence", pa.float64())]), _chat
    ),
}  # fmt: skip
"""Name -> what is asked."""


def work_called(name: str) -> Work:
    """Return one of :data:`WORKS`.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in WORKS:
        raise UnknownNameError("work", name, WORKS)
    return WORKS[name]


def usual_work(run: Path) -> tuple[str, str | None]:
    """Return what a run was trained for: a name in :data:`WORKS`, and what it writes where it creates.

    Args:
        run: the folder.

    Raises:
        RunError: it is no finished run.
    """
    if is_edge(run):
        return "rank", None
    match read_card(run)["task"]:
        case "retrieval" | "retrieval-maxsim":
            return "recommend", None
        case "ranking" | "zeroshot":
            return "rank", None
        case "conversation":
            return "chat", None
        case "generation":
            kind = Path(read_recipe_tree(run)["task"]["prompt"]).stem
            return ("explain", None) if kind == "explanation" else ("create", kind)
        case _:
            return "generate", None


def plain_value(value: Any) -> Any:
    """Return what Arrow gives for a value as a request has it: no null fields, times as Unix seconds.

    >>> plain_value([{"item": "sku-1", "verb": None, "time": datetime.datetime(1970, 1, 2)}])
    [{'item': 'sku-1', 'time': 86400.0}]
    """
    if isinstance(value, Mapping):
        return {name: plain_value(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    return value


def _history(row: Row) -> History:
    """Return a row's history; none is the history of somebody new."""
    history: History | None = row.get("history")
    return "" if history is None else history


def _items(found: Sequence[Recommendation]) -> list[dict[str, Any]]:
    return [{"id": item.id, "title": item.title, "score": item.score} for item in found]


class _NothingKnown:
    """A catalogue without items: enough to tell whether events can be read."""

    def find(self, known: str) -> int | None:
        return None

    def record(self, place: int) -> dict[str, Any]:
        raise KeyError(place)
