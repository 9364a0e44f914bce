"""The disk behind a segment cache: one SQLite file for many threads and processes. This module knows no model.

Write-ahead logging keeps readers and a writer apart, and a process that is killed in the middle of writing leaves a
file without its last transaction. A checksum with every value tells what SQLite itself does not look at.
"""

import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import CacheError

FORMAT = 1
# SQLite takes some hundred parameters a query.
_AT_ONCE = 500
_TABLE = """
CREATE TABLE IF NOT EXISTS states (
    id INTEGER PRIMARY KEY, version TEXT, key BLOB, dtype TEXT, vectors INTEGER, checksum INTEGER, value BLOB,
    UNIQUE (version, key)
)
"""


class DiskTier:
    """States of segments in one file; what was written first goes first when it is full.

    First in, first out, and not least recently used: the memory before it takes the repeats, so that a read here need
    never write.

    Args:
        path: the file, made where it is missing.
        version: what the states are of.
        limit_bytes: largest size, not counting pages that are free again.

    Raises:
        CacheError: the file is damaged or no cache of ours, or cannot be made.
    """

    def __init__(self, path: Path, version: str, limit_bytes: int) -> None:
        self.path, self.version, self.limit_bytes = path, version, limit_bytes
        self._threads = threading.local()
        with self._told() as database:
            known = database.execute("PRAGMA user_version").fetchone()[0]
            empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if known != FORMAT and not (known == 0 and empty):
                raise CacheError(
                    f"{path} is of format {known}, expected a segment cache of format {FORMAT}; name another file"
                )
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {FORMAT}")

    def __len__(self) -> int:
        """Return how many segments of this version are kept."""
        with self._told() as database:
            query = "SELECT count(*) FROM states WHERE version = ?"
            return int(database.execute(query, (self.version,)).fetchone()[0])

    @property
    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        with self._told() as database:
            return _used_bytes(database)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.floating]]:
        """Return the states that are there.

        Raises:
            CacheError: the file is damaged.
        """
        found = {}
        with self._told() as database:
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                places = ",".join("?" * len(some))
                query = (
                    f"SELECT key, dtype, vectors, checksum, value FROM states WHERE version = ? AND key IN ({places})"
                )
                for key, *row in database.execute(query, (self.version, *some)):
                    found[bytes(key)] = self._read(*row)
        return found

    def put_many(self, entries: Mapping[bytes, NDArray[np.floating]], replace: bool = False) -> None:
        """Write states in one transaction; what is there already stays as it is, unless it is to be replaced."""
        rows = []
        for key, states in entries.items():
            kind, value = str(states.dtype), np.ascontiguousarray(states).tobytes()
            rows.append((self.version, key, kind, len(states), _checksum(kind, len(states), value), value))
        columns = "version, key, dtype, vectors, checksum, value"
        with self._told() as database:
            database.execute("BEGIN IMMEDIATE")
            insert = f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO states ({columns}) VALUES (?, ?, ?, ?, ?, ?)"
            database.executemany(insert, rows)
            self._make_room(database)
            database.execute("COMMIT")

    def drop_others(self) -> None:
        """Remove the states of all other versions."""
        with self._told() as database:
            database.execute("DELETE FROM states WHERE version != ?", (self.version,))

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        if (database := getattr(self._threads, "database", None)) is not None:
            database.close()
            self._threads.database = None

    def _make_room(self, database: sqlite3.Connection) -> None:
        while _used_bytes(database) > self.limit_bytes:
            oldest = "SELECT id FROM states ORDER BY id LIMIT 1 + (SELECT count(*) FROM states) / 20"
            if not database.execute(f"DELETE FROM states WHERE id IN ({oldest})").rowcount:
                return

    def _read(self, dtype: str, vectors: int, checksum: int, value: bytes) -> NDArray[np.floating]:
        if _checksum(dtype, vectors, value) != checksum:
            raise CacheError(f"{self.path} is damaged (a value differs from its checksum); remove the file")
        states: NDArray[np.floating] = np.frombuffer(value, dtype=dtype).reshape(vectors, -1)
        return states

    @contextmanager
    def _told(self) -> Iterator[sqlite3.Connection]:
        """Give this thread's connection, and turn what SQLite says into one clear error."""
        try:
            yield self._connection()
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            raise CacheError(
                f"{self.path} cannot be used as a segment cache ({error}); if it is damaged remove the file, it can be "
                "computed again"
            ) from error

    def _connection(self) -> sqlite3.Connection:
        database: Any = getattr(self._threads, "database", None)
        if database is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._threads.database = database
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
        return database

    def _roll_back(self) -> None:
        database = getattr(self._threads, "database", None)
        if database is not None and database.in_transaction:
            database.rollback()


def _checksum(dtype: str, vectors: int, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(f"{dtype} {vectors}".encode()))


def _used_bytes(database: sqlite3.Connection) -> int:
    size, pages, free = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free)
