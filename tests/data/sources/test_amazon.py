import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.sources.amazon import Amazon, AmazonConfig
from m6rec.data.store import Dataset
from m6rec.errors import DataError, RowError
from tests.contracts.source_contract import SourceContract

ITEMS = [
    {"id": 1, "asin": "B1", "title": "Red Polish", "brand": "OPI", "categories": ["Makeup", "Nails"]},
    {"id": 2, "asin": "B2", "title": None, "brand": None, "categories": ["Hair"]},
    {"id": 3, "asin": "B3", "title": "Soap", "brand": "Dove", "categories": [""]},
]


def write(path: Path, rows: list[Any]) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as out:
        out.writelines(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)


def review(item: str, **fields: Any) -> dict[str, Any]:
    return {"reviewerID": "A", "asin": item, **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both sequence layouts side by side."""
    write(tmp_path / "items.jsonl.gz", ITEMS)
    write(tmp_path / "Beauty.txt.gz", ["1 2 1 3\n", "7 3 1\n"])
    write(
        tmp_path / "beauty.items.jsonl",
        [{"i": 5, "asin": "B1", "title": "Red Polish!"}, {"i": 6, "asin": "B9", "title": "New"}],
    )
    write(tmp_path / "beauty.sequences.jsonl.gz", [
        {"u": 1, "user": "A", "train": [5, 6, 5], "val": 6, "test": 5},
        {"u": 2, "user": "B", "train": [6], "val": 5, "test": 6},
    ])  # fmt: skip
    return tmp_path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path / "reviews_Tools_5.json.gz", [
        review("B1", reviewText="Fine.", overall=4.0, summary="ok", unixReviewTime=1393545600),
        review("B2", reviewText="", overall=1.0, summary="no", unixReviewTime=1393545601),
        review("B3", reviewText="Good.", overall=5, summary="yes", unixReviewTime=1393545602),
    ])  # fmt: skip
    write(tmp_path / "meta_Tools.json", [
        "{'asin': 'B1', 'title': \"Bob's Saw\", 'brand': 'Bob', 'categories': [['Tools'], ['Tools', 'Saws']]}\n",
        {"parent_asin": "B2", "title": "Nail", "store": "Nails Inc", "price": "$1,003.50",
         "description": ["A nail.", "Long."]},
        {"asin": "B3", "title": "Glue", "price": "see inside", "category": ["Home", "Glue"], "main_category": "Home"},
    ])  # fmt: skip
    return tmp_path


class TestS3Rec(SourceContract):
    @pytest.fixture
    def source(self, folder: Path) -> Amazon:
        return Amazon(AmazonConfig(str(folder), layout="s3rec"))

    def test_reads_the_layout(self, source: Amazon) -> None:
        events = pa.concat_tables(source.events())
        assert events["user"].to_pylist() == ["1", "1", "1", "7", "7"]
        assert events["item"].to_pylist() == ["B2", "B1", "B3", "B3", "B1"]
        assert pa.concat_tables(source.items()).to_pylist() == [
            {"item": "B1", "title": "Red Polish", "brand": "OPI", "category": "Makeup > Nails"},
            {"item": "B2", "title": None, "brand": None, "category": "Hair"},
            {"item": "B3", "title": "Soap", "brand": "Dove", "category": None},
        ]

    def test_an_unknown_item_is_named(self, folder: Path) -> None:
        write(folder / "Beauty.txt.gz", ["1 2 1 3\n", "7 3 99\n"])
        with pytest.raises(RowError, match=r"Beauty\.txt\.gz, row 2, field 'item': got id '99'"):
            list(Amazon(AmazonConfig(str(folder), layout="s3rec")).events())

    def test_a_user_without_items_is_named(self, folder: Path) -> None:
        write(folder / "Beauty.txt.gz", ["1\n"])
        with pytest.raises(RowError, match="row 1, field 'items': got '1', expected user item"):
            list(Amazon(AmazonConfig(str(folder), layout="s3rec")).events())

    def test_without_a_file_of_items_the_ids_are_the_keys(self, folder: Path) -> None:
        (folder / "items.jsonl.gz").unlink()
        source = Amazon(AmazonConfig(str(folder), layout="s3rec"))
        assert pa.concat_tables(source.events())["item"].to_pylist() == ["2", "1", "3", "3", "1"]
        assert list(source.items()) == []


class TestLlamaRec(SourceContract):
    @pytest.fixture
    def source(self, folder: Path) -> Amazon:
        return Amazon(AmazonConfig(str(folder)))

    def test_reads_the_layout_with_its_split(self, source: Amazon) -> None:
        assert source.layout == "llamarec"
        events = pa.concat_tables(source.events()).to_pylist()
        assert [(row["user"], row["item"], row["split"]) for row in events[:5]] == [
            ("A", "B1", "train"), ("A", "B9", "train"), ("A", "B1", "train"), ("A", "B9", "valid"), ("A", "B1", "test"),
        ]  # fmt: skip

    def test_brand_and_category_come_from_the_other_file(self, source: Amazon) -> None:
        assert pa.concat_tables(source.items()).to_pylist() == [
            {"item": "B1", "title": "Red Polish!", "brand": "OPI", "category": "Makeup > Nails"},
            {"item": "B9", "title": "New", "brand": None, "category": None},
        ]

    def test_the_split_survives_prepare(self, source: Amazon, tmp_path: Path) -> None:
        prepare(source, tmp_path / "out", PrepareConfig(split="given"))
        log = Dataset.open(tmp_path / "out").histories()
        assert sorted(log.splits.tolist()) == [0, 0, 0, 0, 1, 1, 2, 2]


class TestMcAuley(SourceContract):
    @pytest.fixture
    def source(self, raw: Path) -> Amazon:
        return Amazon(AmazonConfig(str(raw)))

    def test_reads_reviews_as_events_and_as_text(self, source: Amazon) -> None:
        assert pa.concat_tables(source.events()).to_pylist()[0] == {
            "user": "A", "item": "B1", "value": 4.0, "time": 1393545600, "verb": "buy",
        }  # fmt: skip
        reviews = pa.concat_tables(source.reviews()).to_pylist()
        assert [review["text"] for review in reviews] == ["Fine.", "Good."]
        assert reviews[0]["summary"] == "ok"

    def test_reads_metadata_of_every_edition(self, source: Amazon) -> None:
        items = {row["item"]: row for row in pa.concat_tables(source.items()).to_pylist()}
        assert items["B1"]["title"] == "Bob's Saw"
        assert items["B1"]["category"] == "Tools > Saws"
        assert items["B2"]["brand"] == "Nails Inc"
        assert items["B2"]["price"] == pytest.approx(1003.5)
        assert items["B2"]["description"] == "A nail. Long."
        assert items["B3"]["price"] is None
        assert items["B3"]["category"] == "Home > Glue"

    def test_a_broken_line_is_named(self, raw: Path) -> None:
        write(raw / "meta_Tools.json", [{"asin": "B1"}, "{broken\n"])
        with pytest.raises(RowError, match=r"meta_Tools\.json, row 2, .* neither JSON nor a Python literal"):
            list(Amazon(AmazonConfig(str(raw))).items())

    def test_code_in_metadata_is_not_run(self, raw: Path) -> None:
        write(raw / "meta_Tools.json", ["__import__('os').getcwd()\n"])
        with pytest.raises(RowError, match="neither JSON nor a Python literal"):
            list(Amazon(AmazonConfig(str(raw))).items())

    def test_a_review_without_a_user_is_named(self, raw: Path) -> None:
        write(raw / "reviews_Tools_5.json.gz", [{"asin": "B1", "overall": 3}])
        with pytest.raises(RowError, match="row 1, field 'user': is empty"):
            list(Amazon(AmazonConfig(str(raw))).events())


def test_a_folder_of_something_else_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is it the right folder"):
        Amazon(AmazonConfig(str(tmp_path))).events()


def test_two_files_of_sequences_are_ambiguous(folder: Path) -> None:
    write(folder / "Toys.txt", ["1 2\n"])
    with pytest.raises(DataError, match=r"expected one file \*\.txt\*, got Beauty\.txt\.gz, Toys\.txt"):
        list(Amazon(AmazonConfig(str(folder), layout="s3rec")).events())


@pytest.mark.parametrize(
    ("layout", "users", "items", "events"),
    [("s3rec", 22_363, 12_101, 198_502), ("llamarec", 22_332, 12_086, 198_215)],
)
def test_real_beauty(shared_data: Path, layout: Any, users: int, items: int, events: int) -> None:
    source = Amazon(AmazonConfig(str(shared_data / "amazon-beauty"), layout=layout))
    log, goods = pa.concat_tables(source.events()), pa.concat_tables(source.items())
    assert (len(set(log["user"].to_pylist())), len(set(log["item"].to_pylist())), len(log)) == (users, items, events)
    assert set(goods["item"].to_pylist()) == set(log["item"].to_pylist())
    assert goods["category"].null_count < 20


def test_real_reviews(shared_data: Path) -> None:
    source = Amazon(AmazonConfig(str(shared_data / "amazon-instruments-reviews")))
    assert sum(len(table) for table in source.events()) == 10_261
    assert sum(len(table) for table in source.reviews()) == 10_254  # seven have no text
