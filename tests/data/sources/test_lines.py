import gzip
from pathlib import Path

import pytest

from m6rec.data.sources.lines import BLOCK_ROWS, read_lines
from m6rec.errors import DataError, RowError


def test_streams_in_blocks_that_know_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "big.dat"
    path.write_text("".join(f"{row}::x\n" for row in range(BLOCK_ROWS + 5)))
    first, second = read_lines(path, "::", ("a", "b"))
    assert (first.row, len(first)) == (1, BLOCK_ROWS)
    assert (second.row, len(second)) == (BLOCK_ROWS + 1, 5)
    assert second.text("a").to_pylist()[0] == str(BLOCK_ROWS)


def test_quotes_mean_nothing_and_an_empty_field_is_null(tmp_path: Path) -> None:
    path = tmp_path / "some.dat"
    path.write_text('"a|\r\n|b"\r\n')
    (chunk,) = read_lines(path, "|", ("first", "second"))
    assert chunk.table.to_pylist() == [{"first": '"a', "second": None}, {"first": None, "second": 'b"'}]


def test_a_row_of_a_later_block_is_named(tmp_path: Path) -> None:
    path = tmp_path / "big.dat"
    path.write_text("a|b\n" * BLOCK_ROWS + "a|b|c\n")
    with pytest.raises(RowError, match=f"row {BLOCK_ROWS + 1}, field 'second': got 3 fields between '|', expected 2"):
        list(read_lines(path, "|", ("first", "second")))


def test_a_truncated_gz_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.dat.gz"
    path.write_bytes(gzip.compress(b"a|b\n" * 100_000)[:-20])
    with pytest.raises(DataError, match="cannot read on after row"):
        list(read_lines(path, "|", ("first", "second")))


def test_another_encoding_says_so(tmp_path: Path) -> None:
    path = tmp_path / "latin.dat"
    path.write_bytes("é|b\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot read on after row 0"):
        list(read_lines(path, "|", ("first", "second")))
