import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import yaml

from m6rec.data.manifest import Manifest
from m6rec.data.prepare import PrepareConfig
from m6rec.data.store import Dataset
from m6rec.errors import DataError

EVENTS = {
    "user": ["a", "a", "a", "a", "b", "b", "b"],
    "item": pa.array(["x", None, "y", "z", "y", "z", "x"]),
    "query": [None, "red hat", None, None, None, None, None],
    "verb": ["click", "search", "buy", "click", "click", None, "buy"],
    "time": [10, 20, 30, 40, 15, 25, 35],
    "value": [5.0, None, 2.0, 4.0, 1.0, 5.0, 3.0],
    "place": ["home", None, None, "work", None, None, None],
}
ITEMS = {"item": list("xyz"), "title": ["Cap", "Hat", "Shoe"], "price": [1.5, None, 2.0], "colour": ["red", None, None]}


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(events=EVENTS, items=ITEMS, users={"user": ["a"], "age": [30]})


def user_of(dataset, key):
    return dataset.users["key"][:].index(key)


def test_records(dataset):
    keys = dataset.items["key"][:]
    records = dict(zip(keys, dataset.item_records(), strict=True))
    assert records["x"] == {"title": "Cap", "price": 1.5, "colour": "red"}
    assert records["y"] == {"title": "Hat"}
    rows = dataset.histories().of(user_of(dataset, "a"))
    first, search, *_ = [dataset.event_record(row) for row in range(rows.start, rows.stop)]
    assert first == {"verb": "click", "time": 10, "value": 5.0, "place": "home", "item": records["x"]}
    assert search == {"verb": "search", "time": 20, "query": "red hat"}
    assert dataset.user_record(user_of(dataset, "a")) == {"age": 30}
    assert dataset.user_record(user_of(dataset, "b")) == {}


def test_item_records_is_a_lazy_sequence(dataset):
    records = dataset.item_records()
    assert len(records) == 3
    assert list(records) == [records[0], records[1], records[2]] == records[:]
    assert records[-1] == records[2]
    with pytest.raises(IndexError):
        records[3]


def test_a_record_is_the_callers_own(dataset):
    dataset.item_record(0)["title"] = "scribbled on"
    assert dataset.item_record(0)["title"] != "scribbled on"


@pytest.mark.parametrize("ask", ["item_record", "user_record", "event_record"])
@pytest.mark.parametrize("number", [-1, 10**9])
def test_numbers_out_of_range(dataset, ask, number):
    with pytest.raises(DataError, match=f"got .*{number}, expected 0 to"):
        getattr(dataset, ask)(number)


def test_histories(dataset):
    histories = dataset.histories()
    keys = dataset.items["key"][:]
    mine = histories.of(user_of(dataset, "a"))
    assert [keys[item] if item >= 0 else None for item in histories.items[mine]] == ["x", None, "y", "z"]
    assert histories.times[mine].tolist() == [10, 20, 30, 40]
    assert histories.splits[mine].tolist() == [0, 0, 1, 2]
    np.testing.assert_array_equal(histories.values[mine], [5, np.nan, 2, 4])
    assert histories.verb_names == ("buy", "click", "search")
    assert histories.verbs[mine].tolist() == [1, 2, 0, 1]
    assert histories.verbs[histories.of(user_of(dataset, "b"))].tolist() == [1, -1, 0]
    assert histories.rows.tolist() == list(range(7))
    assert (histories.num_users, histories.num_items) == (2, 3)


def test_judgements_from_values(dataset):
    train, test = dataset.judgements("train", 4), dataset.judgements("test", 4)
    a, b = user_of(dataset, "a"), user_of(dataset, "b")
    keys = dataset.items["key"][:]

    def rows(pairs):
        columns = (pairs.users, pairs.items, pairs.labels, pairs.lengths)
        return {(user, keys[item], label, length) for user, item, label, length in zip(*columns, strict=True)}

    assert rows(train) == {(a, "x", 1, 0), (b, "y", 0, 0)}
    assert (train.history.splits == 0).all()
    assert rows(dataset.judgements("valid", 4)) == {(a, "y", 0, 2), (b, "z", 1, 1)}
    assert rows(test) == {(a, "z", 1, 3), (b, "x", 0, 2)}
    assert (test.history.splits < 2).all()


def test_judgements_see_nothing_at_or_after_the_pair(make_dataset):
    rng = np.random.default_rng(0)
    shown = {
        "user": [f"u{user}" for user in rng.integers(0, 12, 500)],
        "item": [f"i{item}" for item in rng.integers(0, 30, 500)],
        "time": rng.integers(0, 100, 500),
        "label": rng.integers(0, 2, 500),
    }
    taken = np.flatnonzero(shown["label"])
    events = {name: np.array(shown[name])[taken] for name in ("user", "item", "time")}
    for split in ("leave-one-out", "temporal", "ratio"):
        dataset = make_dataset(PrepareConfig(split=split), events=events, impressions=shown)
        total = 0
        for code, part in enumerate(("train", "valid", "test")):
            pairs = dataset.judgements(part)
            table = dataset.impressions.with_format("numpy")[:]
            times = table["time"][table["split"] == code]
            assert len(times) == len(pairs)
            total += len(pairs)
            assert (pairs.history.splits < max(code, 1)).all()
            for user, time, length in zip(pairs.users, times, pairs.lengths, strict=True):
                seen = pairs.history.times[pairs.history.of(user)]
                assert length == (seen < time).sum()
        assert total == 500


def test_judgements_without_labels(make_dataset):
    events = {"user": ["a"] * 3, "item": list("xyz")}
    with pytest.raises(DataError, match="neither impressions nor values"):
        make_dataset(events=events).judgements("train", 4)
    with pytest.raises(DataError, match="got no threshold"):
        make_dataset(events={**events, "value": [1.0, 2.0, 3.0]}).judgements("train")


def test_tables_are_memory_mapped_and_optional_ones_absent(dataset):
    assert len(dataset.interactions) == 7
    assert dataset.interactions.cache_files[0]["filename"].startswith(str(dataset.folder / ".arrow"))
    assert dataset.reviews is None
    assert dataset.impressions is None


def test_unpacked_table_is_used_again_and_never_when_stale(make_dataset, tmp_path):
    first, second = (
        make_dataset(events=EVENTS, items=ITEMS),
        make_dataset(events=EVENTS, items={**ITEMS, "title": list("123")}),
    )
    (unpacked,) = [file["filename"] for file in first.items.cache_files]
    stamp = os.stat(unpacked).st_mtime_ns
    assert Dataset.open(first.folder).items.cache_files[0]["filename"] == unpacked
    assert os.stat(unpacked).st_mtime_ns == stamp
    shutil.copytree(first.folder / ".arrow", second.folder / ".arrow")
    assert sorted(Dataset.open(second.folder).items["title"][:]) == ["1", "2", "3"]


def test_folder_that_cannot_be_written(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (dataset.folder / ".arrow").write_text("in the way")  # as good as read-only, also for root
    assert len(dataset.items) == 3
    assert dataset.items.cache_files[0]["filename"].startswith(str(tmp_path / "temporary"))


def test_nowhere_to_unpack(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    (dataset.folder / ".arrow").write_text("in the way")
    with pytest.raises(DataError, match=r"items\.parquet cannot be unpacked to"):
        dataset.items  # noqa: B018


def test_no_dataset(tmp_path):
    with pytest.raises(DataError, match="there is no such folder; make one with"):
        Dataset.open(tmp_path / "none")
    with pytest.raises(DataError, match=r"it has no dataset\.yaml"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "has version 99, this m6rec reads 1; prepare the dataset again"),
        ({"version": None}, "has version None"),
        ({"format": "other"}, "no manifest of ours"),
        ({"seed": "much"}, "is damaged: seed: got 'much'"),
        ({"colour": "red"}, "is damaged: unknown setting 'colour'"),
        ({"files": []}, "lists no items, users, interactions.parquet"),
    ],
)
def test_manifest_of_another_make(dataset, change, message):
    path = dataset.folder / "dataset.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        Dataset.open(dataset.folder)


@pytest.mark.parametrize("content", ["[1, 2", "- a", "", "\x00"])
def test_manifest_that_is_none(dataset, content):
    (dataset.folder / "dataset.yaml").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.yaml"):
        Dataset.open(dataset.folder)


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet", "interactions.parquet"])
def test_missing_and_truncated_tables(dataset, name):
    path = dataset.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(DataError, match=rf"{name} has \d+ bytes, the manifest says \d+ \(truncated\?\)"):
        Dataset.open(dataset.folder)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        Dataset.open(dataset.folder)


def test_changed_content_of_the_same_size(dataset):
    path = dataset.folder / "interactions.parquet"
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    opened = Dataset.open(dataset.folder)
    with pytest.raises(DataError, match="not the file the manifest describes"):
        opened.verify()
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be"):
        opened.histories()
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be"):
        opened.interactions  # noqa: B018


def test_manifest_round_trip(dataset):
    assert Manifest.read(dataset.folder) == dataset.manifest
    assert dataset.manifest.licence == "none needed"
    entry = dataset.manifest.file("items.parquet")
    assert entry.rows == 3
    assert entry.schema["title"] == "string"


def test_dataset_travels_to_other_processes(dataset):
    dataset.item_record(0)
    assert pickle.loads(pickle.dumps(dataset)).item_record(0) == dataset.item_record(0)  # noqa: S301


def test_histories_need_no_datasets_library(dataset):
    code = f"import sys; from m6rec.data.store import Dataset; Dataset.open({str(dataset.folder)!r}).histories(); "
    code += "sys.exit('datasets' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
