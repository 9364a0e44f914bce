from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.store import Dataset


@dataclass(frozen=True)
class MemoryConfig:
    path: str = "memory"


@dataclass
class MemorySource:
    """A source whose tables are given; each may be a table, a mapping of columns, or a list of either."""

    tables: dict[str, Any] = field(default_factory=dict)
    config: MemoryConfig = MemoryConfig()
    name: str = "memory"
    licence: str = "none needed"
    domain: str = "default"
    Config = MemoryConfig

    def _stream(self, name: str) -> Iterator[pa.Table]:
        given = self.tables.get(name, [])
        for table in given if isinstance(given, list) else [given]:
            yield table if isinstance(table, pa.Table) else pa.table(table)

    def events(self) -> Iterator[pa.Table]:
        return self._stream("events")

    def items(self) -> Iterator[pa.Table]:
        return self._stream("items")

    def users(self) -> Iterator[pa.Table]:
        return self._stream("users")

    def reviews(self) -> Iterator[pa.Table]:
        return self._stream("reviews")

    def impressions(self) -> Iterator[pa.Table]:
        return self._stream("impressions")

    def conversations(self) -> Iterator[dict[str, Any]]:
        return iter(self.tables.get("conversations", ()))


@pytest.fixture
def memory_source() -> type[MemorySource]:
    return MemorySource


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Prepare given tables and open the result: ``make_dataset(events=..., config=PrepareConfig(...))``."""
    made = 0

    def make(config: PrepareConfig | None = None, **tables: Any) -> Dataset:
        nonlocal made
        made += 1
        folder = tmp_path / f"dataset-{made}"
        prepare(MemorySource(tables), folder, config)
        return Dataset.open(folder)

    return make


def events(*rows: tuple[Any, ...], fields: str = "user item time") -> dict[str, list[Any]]:
    names = fields.split()
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


@pytest.fixture
def rows() -> Callable[..., dict[str, list[Any]]]:
    """Columns from rows: ``rows(("a", "x", 1), fields="user item time")``."""
    return events
