import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec.data import readers
from m6rec.data.readers import read_csv, read_file, read_jsonl, read_parquet
from m6rec.errors import DataError, RowError


def texts(chunks):
    return [
        dict(zip(c.names, row, strict=True))
        for c in chunks
        for row in zip(*(c.text(n).to_pylist() for n in c.names), strict=True)
    ]


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_of_every_make(tmp_path, name, delimiter, newline):
    content = newline.join(["user;item;note", 'a;x;"one; ""two""\nthree"', "", "b;;"]).replace(";", delimiter) + newline
    rows = texts(read_csv(write(tmp_path / name, content.encode())))
    note = f'one{delimiter} "two"\nthree'
    assert rows == [{"user": "a", "item": "x", "note": note}, {"user": "b", "item": None, "note": None}]


def test_csv_byte_order_mark_blanks_and_nameless_column(tmp_path):
    path = write(tmp_path / "log.csv", b"\xef\xbb\xbf, user ,item\n0,a,x")
    assert texts(read_csv(path)) == [{"column_1": "0", "user": "a", "item": "x"}]


def test_csv_without_header(tmp_path):
    path = write(tmp_path / "u.data", b"1\t2\n3\t4\n")
    assert texts(read_csv(path, names=["user", "item"])) == [{"user": "1", "item": "2"}, {"user": "3", "item": "4"}]


def test_csv_of_one_column_and_of_no_row(tmp_path):
    assert texts(read_csv(write(tmp_path / "a.csv", b"title\nhello\n"))) == [{"title": "hello"}]
    assert texts(read_csv(write(tmp_path / "b.csv", b"user,item\n"))) == []


@pytest.mark.parametrize(("row", "got"), [("b", 1), ("b,y,z", 3)])
def test_ragged_row_is_named(tmp_path, row, got):
    path = write(tmp_path / "log.csv", f'user,item\na,"x\ny"\n{row}\n'.encode())
    with pytest.raises(RowError, match=rf"log\.csv, row 2, field 'item': got {got} fields, expected 2"):
        list(read_csv(path))


def test_ragged_row_far_into_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1024)
    path = write(tmp_path / "log.csv", b"user,item\n" + b"a,x\n" * 3000 + b"b\n")
    with pytest.raises(RowError) as caught:
        list(read_csv(path))
    assert caught.value.row == 3001


def test_rows_are_counted_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1024)
    path = write(tmp_path / "log.csv", b"user,item\n" + b"a,x\n" * 3000 + b"b,\xff\n")
    with pytest.raises(RowError, match="row 3001, field 'item': got bytes that are not UTF-8"):
        texts(read_csv(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, expected a header"),
        (b"\n", "is empty, expected a header"),
        (b"user,item,user\n1,2,3\n", "names 'user' twice"),
        ("user,größe\n".encode("latin-1"), "the header is not UTF-8"),
        ("user,item\na,b\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_bad_headers(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        list(read_csv(write(tmp_path / "log.csv", content)))


@pytest.mark.parametrize("read", [read_csv, read_jsonl, read_parquet])
def test_absent_file_and_folder(tmp_path, read):
    with pytest.raises(DataError, match="is not there, expected a file"):
        list(read(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="is a folder, expected a file"):
        list(read(tmp_path))


@pytest.mark.parametrize(("name", "line"), [("log.csv.gz", b"aa,*\n"), ("log.jsonl.gz", b'{"a": "*"}\n')])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_truncated_gzip(tmp_path, name, line, keep):
    packed = gzip.compress(b"".join(line.replace(b"*", b"%d" % number) for number in range(20000)))
    (tmp_path / name).write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(DataError, match="cannot read"):
        list(read_file(tmp_path / name))


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_jsonl(tmp_path, name):
    content = '\ufeff{"user": "a", "n": 1}\n\n{"user": "b", "tags": ["x", "y"], "n": null}\r\n'
    rows = texts(read_jsonl(write(tmp_path / name, content.encode())))
    assert rows == [{"user": "a", "n": "1", "tags": None}, {"user": "b", "n": None, "tags": "x, y"}]


def test_jsonl_mixed_types_become_text(tmp_path):
    path = write(tmp_path / "log.jsonl", b'{"f": 1}\n{"f": "one"}\n{"f": {"a": 2}}\n')
    assert texts(read_jsonl(path)) == [{"f": "1"}, {"f": "one"}, {"f": '{"a": 2}'}]


@pytest.mark.parametrize(("line", "problem"), [(b"{", "no JSON"), (b"[1]", "got list"), (b"\xff", "not UTF-8")])
def test_bad_jsonl_line_is_named(tmp_path, monkeypatch, line, problem):
    monkeypatch.setattr(readers, "JSON_BLOCK_ROWS", 2)
    path = write(tmp_path / "log.jsonl", b'{"a": 1}\n' * 3 + line + b"\n")
    with pytest.raises(RowError, match=rf"row 4, .*{problem}" if line != b"\xff" else problem):
        list(read_jsonl(path))


@pytest.mark.parametrize("name", ["log.parquet", "log.parquet.gz"])
def test_parquet(tmp_path, name):
    pq.write_table(pa.table({"user": [1, 2]}), tmp_path / "plain")
    rows = texts(read_parquet(write(tmp_path / name, (tmp_path / "plain").read_bytes())))
    assert rows == [{"user": "1"}, {"user": "2"}]


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_parquet(tmp_path, keep):
    pq.write_table(pa.table({"user": list(range(1000))}), tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"log\.parquet is no whole parquet file"):
        list(read_parquet(tmp_path / "log.parquet"))


def test_damaged_parquet(tmp_path):
    pq.write_table(pa.table({"user": [str(number) * 9 for number in range(1000)]}), tmp_path / "log.parquet")
    content = bytearray((tmp_path / "log.parquet").read_bytes())
    content[4:400] = bytes(396)
    (tmp_path / "log.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"log\.parquet is no whole parquet file"):
        list(read_parquet(tmp_path / "log.parquet"))


def test_unknown_ending_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot tell the format"):
        list(read_file(write(tmp_path / "log.xlsx", b"x")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"))] * 2), max_size=20))
def test_csv_round_trip(tmp_path, rows):
    import csv
    import io

    sink = io.StringIO()
    writer = csv.writer(sink, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *rows])
    path = write(tmp_path / "round.csv", sink.getvalue().encode())
    assert texts(read_csv(path, delimiter=",")) == [{"a": a or None, "b": b or None} for a, b in rows]


def test_jsonl_round_trip(tmp_path):
    rows = [{"a": "ü\u2028", "b": "1"}, {"a": None, "b": "x\ny"}]
    path = write(tmp_path / "round.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    assert texts(read_jsonl(path)) == rows
