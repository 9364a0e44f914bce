"""An external sort: rows are spread over files by the leading bits of a 64-bit place, and read back file by file.

Every row of one user (or item) lies in one bucket, and the buckets follow each other in the order of places; so what is
left to sort fits in memory, a bucket at a time. Inside a bucket rows keep the order they came in. This module knows no
column.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BITS = 6
NUM_BUCKETS = 1 << BITS
FLUSH_ROWS = 1 << 17


def bucket_of(places: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the bucket of each place; larger places never lie in smaller buckets."""
    return (places >> np.uint64(64 - BITS)).astype(np.uint8)


class Buckets:
    """Tables on disk, split by place.

    Args:
        folder: where the files go; made here. The owner removes it.

    Use: :meth:`add` as often as needed, then :meth:`close`, then any of the readers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.num_rows = 0
        self._waiting: list[tuple[pa.Table, NDArray[np.uint8]]] = []
        self._waiting_rows = 0
        self._writers: dict[int, pa.RecordBatchFileWriter] = {}

    def add(self, table: pa.Table, places: NDArray[np.uint64]) -> None:
        """Append the rows of ``table``; ``places`` is ``[num_rows]``."""
        self.num_rows += len(table)
        self._waiting.append((table, bucket_of(places)))
        self._waiting_rows += len(table)
        if self._waiting_rows >= FLUSH_ROWS:
            self._flush()

    def close(self) -> None:
        """Finish writing; must be called before the first read."""
        self._flush()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def abandon(self) -> None:
        """Let go of open files after a failure, whatever the disk says."""
        self._waiting.clear()
        with contextlib.suppress(OSError, pa.ArrowException):
            self.close()

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the table of every bucket that has rows, in the order of places."""
        for _, table in self.numbered(columns):
            yield table

    def numbered(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Yield bucket number and table of every bucket that has rows, in the order of places."""
        for number in range(NUM_BUCKETS):
            table = self.read(number)
            if table is not None:
                yield number, table if columns is None else table.select(columns)

    def read(self, number: int) -> pa.Table | None:
        """Return the memory-mapped table of one bucket, ``None`` where it has no rows."""
        path = self._path(number)
        if not path.exists():
            return None
        with pa.memory_map(str(path)) as stream:
            return pa.ipc.open_file(stream).read_all()

    def rewrite(self, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace every bucket's table by what ``change`` makes of it (same columns, no row of another bucket)."""
        self.num_rows = 0
        for number, table in self.numbered():
            changed = change(table)
            self.num_rows += len(changed)
            fresh = self._path(number).with_suffix(".new")
            with pa.OSFile(str(fresh), "wb") as sink, pa.ipc.new_file(sink, changed.schema) as writer:
                writer.write_table(changed)
            fresh.replace(self._path(number))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.arrow"

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables([table for table, _ in self._waiting])
        numbers = np.concatenate([numbers for _, numbers in self._waiting])
        self._waiting, self._waiting_rows = [], 0
        table = table.take(pa.array(np.argsort(numbers, kind="stable"))).combine_chunks()
        ends = np.cumsum(np.bincount(numbers, minlength=NUM_BUCKETS))
        for number, (start, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
            if end > start:
                self._writer(number, table.schema).write_table(table.slice(start, end - start))

    def _writer(self, number: int, schema: pa.Schema) -> pa.RecordBatchFileWriter:
        if number not in self._writers:
            self._writers[number] = pa.ipc.new_file(str(self._path(number)), schema)
        return self._writers[number]
