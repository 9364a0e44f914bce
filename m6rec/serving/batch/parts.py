"""A parquet file in parts: each read alone, its answers kept in a file of its own, all joined at the end.

A part is there whole or not at all, so that a job that was cut goes on with the next one. Knows no answer.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m6rec.errors import ConfigError, DataError

FORMAT = 1
# Parts are joined to row groups of about this size: rows may hold hundreds of items each, so it is not rows that count.
GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Part:
    """Some rows of a parquet file, all of one row group.

    Args:
        number: its place among all parts.
        group: the row group.
        start: its first row, counted in the row group from 0.
        rows: how many.
        row: its first row, counted in the file from 1.
    """

    number: int
    group: int
    start: int
    rows: int
    row: int


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file, to be read page by page.

    Raises:
        DataError: no such file, no parquet, or a truncated one.
    """
    if not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'not there'}, expected a parquet file")
    try:
        # Without pre_buffer a row group, however large, is never in memory as a whole.
        return pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no whole parquet file (truncated, or another format?): {error}") from error


def cut(file: pq.ParquetFile, part_rows: int) -> list[Part]:
    """Return a file's parts, in order."""
    parts: list[Part] = []
    row = 1
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        for start in range(0, size, part_rows):
            parts.append(Part(len(parts), group, start, min(part_rows, size - start), row + start))
        row += size
    return parts


def read_parts(path: Path, parts: Iterable[Part], part_rows: int) -> Iterator[tuple[Part, pa.Table]]:
    """Yield parts with their rows; row groups of which none is asked for are not touched.

    Args:
        path: the parquet file.
        parts: in order.
        part_rows: what the file was cut by.

    Raises:
        DataError: the file is damaged.
    """
    with open_parquet(path) as file:
        for group, wanted in groupby(parts, lambda part: part.group):
            starts = {part.start: part for part in wanted}
            try:
                batches = file.iter_batches(part_rows, row_groups=[group], use_threads=False)
                for number, batch in enumerate(batches):
                    if (part := starts.pop(number * part_rows, None)) is not None:
                        yield part, pa.Table.from_batches([batch])
                    if not starts:
                        break
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}, row group {group}: cannot be read ({error})") from error


class PartsFolder:
    """Where a job keeps the parts that are done, beside its output.

    Args:
        out: the output file.
        job: what the parts depend on; parts of another job are not gone on with.

    Raises:
        ConfigError: it holds parts of another job.
    """

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        card, content = self.folder / "job.json", {"format": FORMAT, **job}
        if not card.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_whole(card, json.dumps(content, indent=1, default=str).encode())
            return
        former = json.loads(card.read_text(encoding="utf-8"))
        expected = json.loads(json.dumps(content, default=str))
        if changed := sorted(name for name in {*former, *expected} if former.get(name) != expected.get(name)):
            raise ConfigError(
                f"{self.folder} holds parts of a job with other {', '.join(changed)}; finish that one as it was, "
                f"give another output file, or delete the folder"
            )

    def path(self, part: Part) -> Path:
        """Return the file of a part."""
        return self.folder / f"{part.number:08d}.parquet"

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """Return the parts that are not done."""
        return [part for part in parts if not self.path(part).exists()]

    def keep(self, part: Part, answers: pa.Table) -> None:
        """Write a part's answers: whole, and on the disk, before they bear their name."""
        sink = pa.BufferOutputStream()
        pq.write_table(answers, sink, compression="zstd")
        _write_whole(self.path(part), sink.getvalue())

    def join(self, parts: Iterable[Part], schema: pa.Schema) -> int:
        """Write all parts into the output file, in order, remove them, and return how many rows there are."""
        draft = self.folder / "joined.parquet"
        num_rows, waiting = 0, schema.empty_table()
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for part in parts:
                waiting = pa.concat_tables([waiting, pq.read_table(self.path(part), use_threads=False)])
                num_rows += part.rows
                if waiting.nbytes >= GROUP_BYTES:
                    writer.write_table(waiting)
                    waiting = schema.empty_table()
            if len(waiting):
                writer.write_table(waiting)
        _sync(draft)
        os.replace(draft, self.out)
        shutil.rmtree(self.folder)
        return num_rows


def _write_whole(path: Path, content: Any) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    _sync(draft)
    os.replace(draft, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
