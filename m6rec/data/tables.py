"""Parquet files of a dataset folder, written piece by piece. This module knows no column by name."""

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from m6rec.data.manifest import FileEntry, sha256

GROUP_ROWS = 1 << 17


class TableFile:
    """One parquet file being written; small pieces are joined, so that row groups have a useful size.

    Args:
        path: the file.
        schema: its columns; pieces are cast to it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.num_rows = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def __enter__(self) -> "TableFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append the rows of ``table``."""
        self.num_rows += len(table)
        self._waiting.append(table.select(self.schema.names).cast(self.schema))
        self._waiting_rows += len(table)
        if self._waiting_rows >= GROUP_ROWS:
            self._flush()

    def entry(self) -> FileEntry:
        """Return what the manifest says of the finished file."""
        columns = {field.name: str(field.type) for field in self.schema}
        return FileEntry(self.path.name, self.num_rows, self.path.stat().st_size, sha256(self.path), columns)

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=GROUP_ROWS)
        self._waiting, self._waiting_rows = [], 0
