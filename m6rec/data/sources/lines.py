"""Old plain-text tables without a header: fields between a separator, any encoding, streamed. Knows no dataset."""

import gzip
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from m6rec.data.chunk import Chunk
from m6rec.errors import DataError, RowError

BLOCK_ROWS = 1 << 16


def open_text(path: Path, encoding: str = "utf-8") -> IO[str]:
    """Open a text file, unpacking one whose name ends in ``.gz``."""
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(IO[str], opener(path, "rt", encoding=encoding, newline="\n"))


def read_lines(path: Path, separator: str, names: Sequence[str], encoding: str = "utf-8") -> Iterator[Chunk]:
    """Yield the rows of a file without a header as text columns; an empty field is null.

    Args:
        path: the file, plain or gzipped.
        separator: what stands between the fields; several characters are allowed, quotes mean nothing.
        names: column names.
        encoding: of the file.

    Raises:
        RowError: a row with too few or too many fields.
        DataError: a file that cannot be read to its end.
    """
    row = 1
    try:
        with open_text(path, encoding) as lines:
            while block := list(islice(lines, BLOCK_ROWS)):
                parted = [line.rstrip("\r\n").split(separator) for line in block]
                for offset, fields in enumerate(parted):
                    if len(fields) != len(names):
                        raise RowError(
                            path,
                            row + offset,
                            names[min(len(fields), len(names) - 1)],
                            f"got {len(fields)} fields between {separator!r}, expected {len(names)}",
                        )
                columns = zip(*parted, strict=True)
                arrays = [pa.array([value or None for value in column], pa.string()) for column in columns]
                yield Chunk(pa.table(dict(zip(names, arrays, strict=True))), str(path), row)
                row += len(block)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read on after row {row - 1}: {error}") from error
