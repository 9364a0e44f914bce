"""A piece of a table that knows which file and rows it came from, so that a bad value can be named.

This module knows no file format and no meaning of a column; it turns raw columns into text, numbers and times.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec.errors import RowError

MISSING_NUMBERS = ("", "nan", "null", "none", "na", "n/a")
"""Texts (in any case) that stand for an absent number or time."""

# A Unix time is told from its size: seconds stay below 1e11 until the year 5138, and so on by powers of a thousand.
_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (np.inf, 10**9))


@dataclass(frozen=True)
class Chunk:
    """Rows of one file.

    Args:
        table: the raw rows.
        path: the file, or another name of the origin; used in messages.
        row: 1-based number of the first row (a header does not count).
    """

    table: pa.Table
    path: str
    row: int = 1

    def __len__(self) -> int:
        return len(self.table)

    @property
    def names(self) -> list[str]:
        """Column names in file order."""
        return list(self.table.column_names)

    def fail(self, field: str, index: int, problem: str) -> NoReturn:
        """Raise the :class:`RowError` of row ``index`` of this chunk."""
        raise RowError(self.path, self.row + int(index), field, problem)

    def require(self, field: str, column: pa.Array, problem: str) -> pa.Array:
        """Return ``column`` unless it has a null.

        Raises:
            RowError: names the first row with a null.
        """
        if column.null_count:
            self.fail(field, np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0], problem)
        return column

    def text(self, field: str) -> pa.Array:
        """Return a column as strings; an empty text is null, lists are joined, an absent column is all null.

        Raises:
            RowError: bytes that are not UTF-8.
        """
        column = self._column(field)
        if _is_binary(column.type):
            column = self._decode(field, column)
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_struct(column.type):
            column = pa.array([_joined(value) for value in column.to_pylist()], pa.string())
        elif column.type != pa.string():
            column = column.cast(pa.string())
        return pc.if_else(pc.equal(column, ""), None, column)

    def number(self, field: str) -> pa.Array:
        """Return a column as float64; NaN and the usual words for it are null, an absent column is all null.

        Raises:
            RowError: a text that is no number, or an infinite one.
        """
        column = self._column(field)
        if _is_text(column.type):
            column = self._numbers(field)
        elif not pa.types.is_floating(column.type):
            column = self._cast(field, column, pa.float64(), "a number")
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), None, column)
        infinite = pc.is_inf(column).fill_null(False).to_numpy(zero_copy_only=False)
        if infinite.any():
            self.fail(field, infinite.argmax(), "got an infinite number, expected a finite one")
        return column

    def time(self, field: str) -> pa.Array:
        """Return a column as int64 Unix seconds; absent times are null, an absent column is all null.

        Understood are Unix seconds, milli-, micro- and nanoseconds (told apart by size), ISO 8601 dates and times
        (UTC where no zone is given), and Arrow's own dates and timestamps.

        Raises:
            RowError: a text that is no time.
        """
        column = self._column(field)
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            stamps = column.cast(pa.timestamp("s", getattr(column.type, "tz", None)), safe=False)
            return stamps.cast(pa.int64())
        if not _is_text(column.type):
            return _seconds(self.number(field))
        texts = self._present(field)
        try:
            return _seconds(texts.cast(pa.float64()))
        except pa.ArrowInvalid:
            pass  # not numbers: dates
        try:
            return texts.cast(pa.timestamp("us")).cast(pa.timestamp("s"), safe=False).cast(pa.int64())
        except pa.ArrowInvalid:
            pass  # a mixture, zones, or a mistake: one distinct text at a time
        expected = "Unix seconds or milliseconds, or a date such as 2024-05-31 18:04:00"
        return self._parse(field, texts, _unix, pa.int64(), expected)

    def integer(self, field: str) -> pa.Array:
        """Return a column as int64; an absent column is all null.

        Raises:
            RowError: a value that is no whole number.
        """
        numbers = self.number(field)
        broken = pc.not_equal(pc.round(numbers), numbers).fill_null(False).to_numpy(zero_copy_only=False)
        if broken.any():
            self.fail(field, broken.argmax(), f"got {numbers[broken.argmax()]}, expected a whole number")
        return numbers.cast(pa.int64())

    def _column(self, field: str) -> pa.Array:
        if field not in self.table.column_names:
            return pa.nulls(len(self), pa.string())
        column = self.table[field]
        column = (
            column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])
        )
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        return column.cast(pa.string()) if pa.types.is_null(column.type) else column

    def _present(self, field: str) -> pa.Array:
        """Return a text column without blanks around its values, null where a word for "absent" stands."""
        trimmed = pc.utf8_trim_whitespace(self.text(field))
        missing = pc.is_in(pc.utf8_lower(trimmed), pa.array(MISSING_NUMBERS))
        return pc.if_else(missing, None, trimmed)

    def _decode(self, field: str, column: pa.Array) -> pa.Array:
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            for index, value in enumerate(column.to_pylist()):
                try:
                    value and value.decode("utf-8")
                except UnicodeDecodeError as error:
                    self.fail(field, index, f"got bytes that are not UTF-8 ({error.reason}); save the file as UTF-8")
            raise

    def _cast(self, field: str, column: pa.Array, kind: pa.DataType, expected: str) -> pa.Array:
        try:
            return column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            first = column.is_valid().index(pa.scalar(True)).as_py()
            self.fail(field, max(first, 0), f"got {column.type} {column[max(first, 0)]!s:.60}, expected {expected}")

    def _numbers(self, field: str) -> pa.Array:
        texts = self._present(field)
        try:
            return texts.cast(pa.float64())
        except pa.ArrowInvalid:
            return self._parse(field, texts, float, pa.float64(), "a number")

    def _parse(
        self, field: str, texts: pa.Array, read: Callable[[str], float], kind: pa.DataType, expected: str
    ) -> pa.Array:
        """Convert each distinct text by ``read``, whose ValueError becomes the error of its first row."""
        encoded = texts.dictionary_encode()
        values = []
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            try:
                values.append(read(text))
            except ValueError:
                self.fail(field, encoded.indices.index(code).as_py(), f"got {text!r:.60}, expected {expected}")
        return pa.array(values, kind).take(encoded.indices)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _joined(value: Any) -> str | None:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return None if value is None else ", ".join(str(part) for part in value if part is not None)


def _seconds(numbers: pa.Array) -> pa.Array:
    """Return Unix seconds of float64 times whose unit their size tells."""
    times = numbers.to_numpy(zero_copy_only=False)
    size = np.abs(times)
    divisor = np.select([size < limit for limit, _ in _UNITS], [unit for _, unit in _UNITS], default=1)
    with np.errstate(invalid="ignore"):
        seconds = np.floor(times / divisor).astype(np.int64)
    return pa.array(seconds, mask=np.isnan(times))


def _unix(text: str) -> int:
    """Return the Unix seconds of an ISO 8601 date or time, or of a number.

    >>> _unix("1970-01-02"), _unix("1970-01-01T01:00:00+01:00"), _unix("5000")
    (86400, 0, 5000)
    """
    try:
        return int(_seconds(pa.array([float(text)]))[0].as_py())
    except ValueError:
        moment = datetime.datetime.fromisoformat(text)
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return int(np.floor(zoned.timestamp()))
