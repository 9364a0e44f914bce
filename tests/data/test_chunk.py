import datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.data.attributes import pack, unpack
from m6rec.data.chunk import Chunk
from m6rec.errors import RowError

DAY = 1704067200  # 2024-01-01


def chunk(values, kind=None, row=1):
    return Chunk(pa.table({"f": pa.array(values, kind)}), "log.csv", row)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["1704067200", "1704067200000", "1704067200000000", "1704067200000000000", "1704067200.9"], [DAY] * 5),
        ([DAY, DAY * 1000, -5], [DAY, DAY, -5]),
        (["2024-01-01", "2024-01-01 00:00:01", "2024-01-01T00:00:02.5"], [DAY, DAY + 1, DAY + 2]),
        (["2024-01-01T02:00:00+02:00", "2024-01-01T00:00:00Z", "2024-01-01", str(DAY), None], [DAY] * 4 + [None]),
        (["", " nan ", "NULL", f" {DAY} "], [None, None, None, DAY]),
        ([datetime.date(2024, 1, 1), None], [DAY, None]),
        ([datetime.datetime(2024, 1, 1, 1), None], [DAY + 3600, None]),
        ([float("nan"), float(DAY)], [None, DAY]),
    ],
)
def test_times_of_every_kind(given, expected):
    assert chunk(given).time("f").to_pylist() == expected


def test_zoned_timestamps_keep_their_moment():
    zoned = pa.array([DAY * 1000], pa.timestamp("ms", "Asia/Tokyo"))
    assert Chunk(pa.table({"f": zoned}), "x").time("f").to_pylist() == [DAY]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["1", " -2.5 ", "+3", "1e2", "NaN", "", None, "n/a"], [1, -2.5, 3, 100, None, None, None, None]),
        ([1, None, -3], [1, None, -3]),
        ([1.5, float("nan")], [1.5, None]),
        ([True, False], [1, 0]),
    ],
)
def test_numbers(given, expected):
    assert chunk(given).number("f").to_pylist() == expected


@pytest.mark.parametrize("read", [Chunk.number, Chunk.integer, Chunk.time])
def test_bad_value_names_file_row_and_field(read):
    with pytest.raises(RowError, match=r"log\.csv, row 12, field 'f': got 'soon', expected") as caught:
        read(chunk(["1", "2", "soon", "later"], row=10), "f")
    assert (caught.value.path, caught.value.row, caught.value.field) == ("log.csv", 12, "f")


@pytest.mark.parametrize("value", ["inf", "-Infinity"])
def test_infinite_number_is_refused(value):
    with pytest.raises(RowError, match="row 2, field 'f': got an infinite number"):
        chunk(["1", value]).number("f")


def test_fraction_is_no_integer():
    with pytest.raises(RowError, match=r"row 1, field 'f': got 0\.5, expected a whole number"):
        chunk([0.5]).integer("f")


def test_nested_value_is_no_number():
    with pytest.raises(RowError, match="row 2, field 'f'"):
        chunk([None, [1]]).number("f")


def test_bytes_that_are_not_utf8_name_their_row():
    with pytest.raises(RowError, match="row 2, field 'f': got bytes that are not UTF-8"):
        chunk([b"ok", "München".encode("latin-1")]).text("f")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "", None, " b "], ["a", None, None, " b "]),
        ([1, 2], ["1", "2"]),
        ([["a", "b"], [], None], ["a, b", None, None]),
        ([b"a\xe2\x82\xac"], ["a€"]),
        ([{"a": 1}], ['{"a": 1}']),
        ([None], [None]),
    ],
)
def test_text(given, expected):
    assert chunk(given).text("f").to_pylist() == expected


def test_dictionary_and_absent_columns():
    coded = Chunk(pa.table({"f": pa.array(["a", "b"]).dictionary_encode()}), "x")
    assert coded.text("f").to_pylist() == ["a", "b"]
    assert coded.text("g").null_count == coded.number("g").null_count == coded.time("g").null_count == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.none() | st.text(), st.none() | st.integers(-(2**60), 2**60), st.none() | st.booleans())))
def test_attributes_round_trip(rows):
    table = pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.string()),
            'b"\\': pa.array([row[1] for row in rows], pa.int64()),
            "ü": pa.array([row[2] for row in rows], pa.bool_()),
        }
    )
    names = table.column_names
    expected = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    packed = pack(table, names)
    assert [unpack(text) for text in packed.to_pylist()] == expected
    assert all(text is None for text, row in zip(packed.to_pylist(), expected, strict=True) if not row)


def test_attributes_of_odd_types():
    table = pa.table(
        {
            "float32": pa.array([0.1, None], pa.float32()),
            "nan": [float("nan"), float("inf")],
            "list": [["a", None], []],
            "struct": [{"x": 1, "y": None}, None],
            "date": [datetime.date(2024, 1, 2), None],
            "coded": pa.array(["u", None]).dictionary_encode(),
        }
    )
    first, second = (unpack(text) for text in pack(table, table.column_names).to_pylist())
    assert first == {"float32": 0.1, "list": ["a"], "struct": {"x": 1}, "date": "2024-01-02", "coded": "u"}
    assert second == {}
