"""What sources over a published folder share: finding a file, plain or gzipped, and having nothing of some table.

Knows no dataset.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec.data.chunk import Chunk
from m6rec.data.sources.lines import open_text
from m6rec.errors import DataError


class FolderSource:
    """The tables that a published folder does not have are empty; a subclass overrides those that it has."""

    def users(self) -> Iterator[pa.Table]:
        """Yield nothing: nothing is known of the users."""
        yield from ()

    def reviews(self) -> Iterator[pa.Table]:
        """Yield nothing: there are no reviews."""
        yield from ()

    def conversations(self) -> Iterator[dict[str, Any]]:
        """Yield nothing: there are no dialogues."""
        yield from ()

    def impressions(self) -> Iterator[pa.Table]:
        """Yield nothing: what was shown was not logged."""
        yield from ()


def find(folder: str | Path, *names: str) -> Path | None:
    """Return the first of ``names`` that ``folder`` has, as it stands or with ``.gz``; ``None`` where it has none.

    Raises:
        DataError: no such folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is {'a file' if root.exists() else 'not there'}, expected the dataset's folder")
    paths = (root / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def need(folder: str | Path, *names: str) -> Path:
    """Return what :func:`find` returns.

    Raises:
        DataError: no such folder, or it has none of ``names``.
    """
    path = find(folder, *names)
    if path is None:
        raise DataError(f"{folder} has no {' or '.join(names)} (or the same with .gz); is it the right folder?")
    return path


def with_columns(chunks: Iterator[Chunk], *names: str) -> Iterator[Chunk]:
    """Pass chunks on if they have these columns.

    Raises:
        DataError: names the file, the missing column and those that are there.
    """
    for chunk in chunks:
        missing = next((name for name in names if name not in chunk.names), None)
        if missing is not None:
            raise DataError(f"{chunk.path} has no column {missing!r}; it has {', '.join(chunk.names)}")
        yield chunk


def read_object(path: Path) -> dict[str, Any]:
    """Return a small JSON file that holds one object, plain or gzipped.

    Raises:
        DataError: no JSON, a truncated file, or no object.
    """
    try:
        with open_text(path) as stream:
            value = json.load(stream)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is no whole JSON file: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: got a {type(value).__name__}, expected one JSON object")
    return value
