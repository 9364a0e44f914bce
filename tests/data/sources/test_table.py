import dataclasses
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec.config import field_help, parse
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources import SOURCES
from m6rec.data.sources.base import Source
from m6rec.data.sources.table import CsvSource, JsonLinesSource, ParquetSource
from m6rec.data.store import Dataset
from m6rec.errors import DataError, RowError

LOG = """who;what;when;did;place
ann;x;2024-01-01;click;home
ann;y;2024-01-02;buy;
bob;x;2024-01-03;click;
ann;z;2024-01-04;click;work
"""
GOODS = "what,label,aisle,colour\nx,Red shoe,Shoes,red\ny,Blue hat,Hats,\n"
FLAGS = {"user": "who", "item": "what", "time": "when", "event": "did", "title": "label", "category": "aisle"}


def records(dataset):
    return dict(zip(dataset.items["key"][:], dataset.item_records(), strict=True))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "goods.csv").write_text(GOODS)
    return tmp_path


def made(folder, cls=CsvSource, **config):
    prepare(cls(cls.Config(**config)), folder / "out")
    return Dataset.open(folder / "out")


@pytest.mark.parametrize(("name", "cls"), [("csv", CsvSource), ("jsonl", JsonLinesSource), ("parquet", ParquetSource)])
def test_shelf(name, cls):
    assert SOURCES.load(name) is cls
    source = cls(parse(cls.Config, {"path": "log"}))
    assert isinstance(source, Source)
    assert source.name == name
    assert set(field_help(cls.Config)) == set(cls.Config.__dataclass_fields__)


def test_every_column_mapped_by_flags(folder):
    dataset = made(folder, path=str(folder / "log.csv"), items=str(folder / "goods.csv"), **FLAGS)
    assert records(dataset) == {
        "x": {"title": "Red shoe", "category": "Shoes", "colour": "red"},
        "y": {"title": "Blue hat", "category": "Hats"},
        "z": {"title": "z"},
    }
    ann = dataset.histories().of(dataset.users["key"][:].index("ann"))
    events = [dataset.event_record(row) for row in range(ann.start, ann.stop)]
    assert [event["verb"] for event in events] == ["click", "buy", "click"]
    assert [event.get("place") for event in events] == ["home", None, "work"]
    assert events[0]["time"] == 1704067200
    assert dataset.manifest.source_config["user"] == "who"


@pytest.mark.parametrize("make", ["jsonl", "jsonl.gz", "parquet", "tsv", "csv.gz"])
def test_other_formats_give_the_same_dataset(folder, make):
    from m6rec.data.readers import read_csv

    expected = made(folder, path=str(folder / "log.csv"), items=str(folder / "goods.csv"), **FLAGS)
    expected = (records(expected), [expected.event_record(row) for row in range(4)])
    (chunk,) = read_csv(folder / "log.csv")
    table = pa.table({name: chunk.text(name) for name in chunk.names})
    path, cls = folder / f"log.{make}", CsvSource
    if make.startswith("jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        path.write_bytes(gzip.compress(content) if make.endswith("gz") else content)
        cls = JsonLinesSource
    elif make == "parquet":
        pq.write_table(table, path)
        cls = ParquetSource
    elif make == "tsv":
        path.write_text(LOG.replace(";", "\t"))
    else:
        path.write_bytes(gzip.compress(LOG.encode()))
    dataset = made(folder, cls, path=str(path), items=str(folder / "goods.csv"), **FLAGS)
    assert (records(dataset), [dataset.event_record(row) for row in range(4)]) == expected


def test_usual_names_need_no_flag(folder):
    (folder / "log.csv").write_text("userId,movieId,Rating,timestamp\n1,2,4.5,1704067200\n1,3,NaN,1704067201\n")
    (folder / "goods.csv").write_text("movieId,title,genres\n2,Toy Story,Animation\n")
    dataset = made(folder, path=str(folder / "log.csv"), items=str(folder / "goods.csv"))
    assert records(dataset)["2"] == {"title": "Toy Story", "category": "Animation"}
    assert dataset.event_record(0)["value"] == 4.5
    assert dataset.event_record(1) == {"time": 1704067201, "item": {"title": "3"}}


def test_items_key_may_be_called_id(folder):
    (folder / "goods.csv").write_text("id,label\nx,Red shoe\n")
    dataset = made(
        folder, path=str(folder / "log.csv"), items=str(folder / "goods.csv"), user="who", item="what", title="label"
    )
    assert records(dataset)["x"] == {"title": "Red shoe"}


def test_without_items_the_log_names_them(folder):
    (folder / "log.csv").write_text("user,item,title,price,page\na,x,,9,1\na,x,Red shoe,9,2\nb,y,,,3\n")
    dataset = made(folder, path=str(folder / "log.csv"), price="")
    assert records(dataset) == {"x": {"title": "Red shoe"}, "y": {"title": "y"}}
    assert {row: dataset.event_record(row).get("page") for row in range(3)}.keys() == {0, 1, 2}
    rows = [dataset.event_record(row) for row in range(3)]
    assert sorted(row["page"] for row in rows) == ["1", "2", "3"]
    assert sorted(row.get("price", "") for row in rows) == ["", "9", "9"]  # left an attribute


def test_without_anything_but_keys(folder):
    dataset = made(folder, path=str(folder / "log.csv"), user="who", item="what")
    assert records(dataset)["x"] == {"title": "x"}
    assert dataset.histories().times is None
    assert {"when", "did"} <= dataset.event_record(0).keys()


def test_extra_columns_never_hide_ours(folder):
    (folder / "log.csv").write_text("user,item,value,mark\na,x,5,7\n")
    dataset = made(folder, path=str(folder / "log.csv"), value="mark")
    assert dataset.event_record(0) == {"value": 7.0, "other_value": "5", "item": {"title": "x"}}


def test_users(folder):
    (folder / "people.csv").write_text("who,age\nann,30\nzoe,9\n")
    dataset = made(folder, path=str(folder / "log.csv"), users=str(folder / "people.csv"), user="who", item="what")
    people = dict(zip(dataset.users["key"][:], map(dataset.user_record, range(3)), strict=True))
    assert people == {"ann": {"age": "30"}, "bob": {}, "zoe": {"age": "9"}}


def test_labels_make_a_log_of_impressions(folder):
    (folder / "log.csv").write_text("user,item,time,clicked\na,x,1,1\na,y,2,0\na,z,3,1\n")
    dataset = made(folder, path=str(folder / "log.csv"), label="clicked")
    keys = dataset.items["key"][:]
    assert [keys[item] for item in dataset.histories().items] == ["x", "z"]
    train = dataset.judgements("train")
    assert [(keys[i], label, n) for i, label, n in zip(train.items, train.labels, train.lengths, strict=True)] == [
        ("x", 1, 0),
        ("y", 0, 1),
        ("z", 1, 1),
    ]


def test_split_column_is_used_when_named_and_kept_when_not(folder):
    (folder / "log.csv").write_text("user,item,time,split\na,x,1,train\na,y,2,dev\na,z,3,test\n")
    path = str(folder / "log.csv")
    prepare(CsvSource(CsvSource.Config(path, split_column="split")), folder / "out", PrepareConfig(split="given"))
    assert Dataset.open(folder / "out").histories().splits.tolist() == [0, 1, 2]
    assert made(folder, path=path).event_record(1)["other_split"] == "dev"
    with pytest.raises(DataError, match=r"no column 'part' for split_column; .* --split-column COLUMN"):
        made(folder, path=path, split_column="part")


def test_no_flag_of_a_table_takes_one_of_prepare():
    fields = [{field.name for field in dataclasses.fields(config)} for config in (CsvSource.Config, PrepareConfig)]
    assert not fields[0] & fields[1]


def test_searches_have_no_item(folder):
    (folder / "log.csv").write_text("user,item,query\na,,red shoe\na,x,\n")
    dataset = made(folder, path=str(folder / "log.csv"))
    assert dataset.event_record(0) == {"query": "red shoe"}
    (folder / "log.csv").write_text("user,item,query\na,,\n")
    with pytest.raises(RowError, match=r"log\.csv, row 1, field 'item': is empty"):
        made(folder, path=str(folder / "log.csv"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {},
            r"log\.csv: no column for user; it has: who, what, when, did, place; say which one .* --user COLUMN",
        ),
        ({"user": "who"}, "no column for item; .* with --item COLUMN"),
        ({"user": "who", "item": "wat"}, "no column 'wat' for item"),
        ({**FLAGS}, "no column 'label' for title"),
        ({"user": "who", "item": "what", "label": "took"}, "no column 'took' for label"),
    ],
)
def test_column_that_is_not_there(folder, config, message):
    with pytest.raises(DataError, match=message):
        made(folder, path=str(folder / "log.csv"), **config)
    assert not (folder / "out").exists()


def test_items_without_a_key_or_with_a_wrong_flag(folder):
    config = {"path": str(folder / "log.csv"), "items": str(folder / "goods.csv"), "user": "who", "item": "what"}
    with pytest.raises(DataError, match=r"goods\.csv: no column 'name' for title; it has: what, label, aisle, colour"):
        made(folder, **config, title="name")
    (folder / "goods.csv").write_text("label\nRed shoe\n")
    with pytest.raises(DataError, match=r"goods\.csv: no column 'what' for item; it has: label"):
        made(folder, **config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ann;x;yesterday;click;", "row 5, field 'when': got 'yesterday', expected Unix seconds"),
        (";x;2024-01-01;click;", "row 5, field 'who': is empty"),
        ("ann;;2024-01-01;click;", "row 5, field 'what': is empty"),
        ("ann;x;2024-01-01;click", "row 5, field 'place': got 4 fields, expected 5"),
    ],
)
def test_bad_rows_name_file_row_and_column(folder, line, message):
    with (folder / "log.csv").open("a") as log:
        log.write(line + "\n")
    with pytest.raises(RowError, match=rf"log\.csv, {message}"):
        made(folder, path=str(folder / "log.csv"), user="who", item="what", time="when")


def test_bad_price_names_the_file_of_items(folder):
    (folder / "goods.csv").write_text("what,price\nx,cheap\n")
    with pytest.raises(RowError, match=r"goods\.csv, row 1, field 'price': got 'cheap', expected a number"):
        made(folder, path=str(folder / "log.csv"), items=str(folder / "goods.csv"), user="who", item="what")


def test_empty_and_absent_logs(folder):
    (folder / "log.csv").write_text("user,item\n")
    with pytest.raises(DataError, match="no event is left of the log"):
        made(folder, path=str(folder / "log.csv"))
    with pytest.raises(DataError, match="is not there, expected a file"):
        made(folder, path=str(folder / "none.csv"))
