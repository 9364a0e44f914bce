"""Files as streams of chunks: csv, json lines and parquet, plain or gzipped, in bounded memory.

This module knows formats and nothing of what a column means; every value is read as it stands (csv: as text), so that
no type is guessed from a file's first rows and refused in its last.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from m6rec.data.chunk import Chunk
from m6rec.errors import DataError, RowError

DELIMITERS = ",\t;|"
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 1 << 17
JSON_BLOCK_ROWS = 1 << 14


def read_csv(path: str | Path, *, delimiter: str | None = None, names: Sequence[str] | None = None) -> Iterator[Chunk]:
    """Yield the rows of a csv file; every column is text, an empty field is null.

    Args:
        path: the file; a name that ends in ``.gz`` is unpacked on the way.
        delimiter: one character; sniffed from the first line where not given.
        names: column names of a file without a header line.

    Raises:
        DataError: no such file, an empty one, or a header that names a column twice.
        RowError: a row with too few or too many fields.
    """
    source = _existing(path)
    if delimiter is None:
        delimiter = sniff_delimiter(source)
    ragged: list[pa.csv.InvalidRow] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    header = list(names) if names is not None else _header(source, delimiter)
    # Bytes, not text: Arrow's own complaint about bad UTF-8 does not name the row; Chunk.text does.
    types = dict.fromkeys(header, pa.binary())
    row = 1
    with contextlib.closing(_open(source)) as stream:
        try:
            with pa.csv.open_csv(
                stream,
                pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names),
                pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
                pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
            ) as batches:
                for batch in batches:
                    table = pa.Table.from_batches([batch]).rename_columns(_stripped(header))
                    yield Chunk(table, str(source), row)
                    row += batch.num_rows
        except pa.ArrowInvalid as error:
            raise _csv_error(source, ragged, header, row, error) from error
        except (OSError, EOFError) as error:
            raise DataError(f"{source}: cannot read on after row {row - 1}: {error}") from error


def _csv_error(path: Path, ragged: list[Any], header: list[str], row: int, error: Exception) -> DataError:
    if not ragged:
        return DataError(f"{path}: cannot read on after row {row - 1}: {error}")
    bad = ragged[0]
    number = bad.number - 1 if bad.number is not None else row
    field = header[min(bad.actual_columns, len(header) - 1)]
    problem = f"got {bad.actual_columns} fields, expected {bad.expected_columns}; the row reads {bad.text!r:.80}"
    return RowError(path, number, field, problem)


def sniff_delimiter(path: Path) -> str:
    """Return the delimiter of a csv file: of comma, tab, semicolon and bar the one its first line has most often.

    A file of one column has none of them; it reads as comma-separated.
    """
    try:
        with _open_text(path) as lines:
            line = next(lines, "")
    except UnicodeDecodeError:
        return ","  # the header, or the first bad row, says so better
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot read the file: {error}") from error
    return max(DELIMITERS, key=line.count)


def _header(path: Path, delimiter: str) -> list[str]:
    """Return the column names as they stand (a name may be quoted and hold a newline)."""
    with _open_text(path, errors="surrogateescape") as lines:
        names = next(csv.reader(lines, delimiter=delimiter), [])
    if not any(name.strip() for name in names):
        raise DataError(f"{path} is empty, expected a header line with column names")
    if any("\udc80" <= letter <= "\udcff" for name in names for letter in name):
        raise DataError(f"{path}: the header is not UTF-8; save the file as UTF-8")
    stripped = _stripped(names)
    twice = sorted({name for name in stripped if stripped.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {', '.join(twice)!r} twice; give every column its own name")
    return names


def _stripped(header: list[str]) -> list[str]:
    """Return names without blanks around them; a nameless column, as spreadsheets write, is called by its place."""
    return [name.strip() or f"column_{place}" for place, name in enumerate(header, start=1)]


def read_jsonl(path: str | Path) -> Iterator[Chunk]:
    """Yield the rows of a file of one JSON object a line; a key that a row lacks is null.

    A column whose values are of several types becomes text.

    Raises:
        DataError: no such file.
        RowError: a line that is no JSON object; names its line number.
    """
    source = _existing(path)
    row = 1
    rows: list[dict[str, Any]] = []
    with _open_text(source) as lines:
        try:
            for line in lines:
                if line.strip():
                    rows.append(_object(source, row + len(rows), line))
                if len(rows) == JSON_BLOCK_ROWS:
                    yield Chunk(_columns(rows), str(source), row)
                    row, rows = row + len(rows), []
        except UnicodeDecodeError as error:
            raise RowError(
                source, row + len(rows), "*", "got bytes that are not UTF-8; save the file as UTF-8"
            ) from error
        except (OSError, EOFError) as error:
            raise DataError(f"{source}: cannot read on after row {row + len(rows) - 1}: {error}") from error
    if rows:
        yield Chunk(_columns(rows), str(source), row)


def _object(path: Path, row: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowError(path, row, "*", f"got a line that is no JSON ({error}); expected one object a line") from error
    if not isinstance(value, dict):
        raise RowError(path, row, "*", f"got {type(value).__name__}, expected one JSON object a line")
    return value


def _columns(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())


def read_parquet(path: str | Path) -> Iterator[Chunk]:
    """Yield the rows of a parquet file in batches.

    Raises:
        DataError: no such file, no parquet, or a truncated one.
    """
    source = _existing(path)
    row = 1
    with _seekable(source) as stream:
        try:
            for batch in pq.ParquetFile(stream).iter_batches(BLOCK_ROWS, use_threads=False):
                yield Chunk(pa.Table.from_batches([batch]), str(source), row)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{source} is no whole parquet file (truncated, or another format?): {error}") from error


FORMATS = {
    "csv": read_csv,
    "tsv": read_csv,
    "txt": read_csv,
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "parquet": read_parquet,
}
"""File name ending (before ``.gz``) -> reader."""


def read_file(path: str | Path, delimiter: str | None = None) -> Iterator[Chunk]:
    """Yield the rows of a file whose name tells its format.

    Args:
        path: the file.
        delimiter: of a csv file; sniffed where not given.

    Raises:
        DataError: an ending that is not in :data:`FORMATS`, and whatever the format's reader raises.
    """
    endings = [ending.lstrip(".").lower() for ending in Path(path).suffixes]
    ending = next((ending for ending in reversed(endings) if ending != "gz"), "")
    if ending not in FORMATS:
        raise DataError(
            f"{path}: cannot tell the format from the name; expected one of .{', .'.join(FORMATS)} (or with .gz)"
        )
    reader = FORMATS[ending]
    return read_csv(path, delimiter=delimiter) if reader is read_csv else reader(path)


def _existing(path: str | Path) -> Path:
    source = Path(path).expanduser()
    if not source.is_file():
        raise DataError(f"{source} is {'a folder' if source.is_dir() else 'not there'}, expected a file")
    return source


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> Any:
    return pa.input_stream(str(path), compression="gzip" if _is_gzip(path) else None)


def _open_text(path: Path, errors: str = "strict") -> IO[str]:
    opened = cast(IO[bytes], (gzip.open if _is_gzip(path) else open)(path, "rb"))
    return io.TextIOWrapper(opened, encoding="utf-8-sig", errors=errors, newline="")


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """Open for random access, which parquet needs; a gzipped file is unpacked to an unnamed file first."""
    if not _is_gzip(path):
        with path.open("rb") as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as stream:
        try:
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, stream)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot unpack the file: {error}") from error
        yield stream
