import errno
import itertools
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec.data import buckets as buckets_module
from m6rec.data import tables as tables_module
from m6rec.data.prepare import PrepareConfig, prepare
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, DataError, RowError


def log(num_events=400, num_users=20, num_items=40, seed=0, tied=False):
    """A random log with searches, values, verbs, an extra column and shuffled times."""
    rng = np.random.default_rng(seed)
    searches = rng.random(num_events) < 0.1
    return pa.table(
        {
            "user": [f"u{user}" for user in rng.integers(0, num_users, num_events)],
            "item": [
                None if s else f"i{i}" for s, i in zip(searches, rng.integers(0, num_items, num_events), strict=True)
            ],
            "query": ["red shoe" if search else None for search in searches],
            "time": rng.integers(0, 20, num_events) if tied else rng.permutation(num_events),
            "verb": np.where(searches, "search", np.array(["click", "buy"])[rng.integers(0, 2, num_events)]),
            "value": rng.integers(-1, 6, num_events).astype(float),
            "place": [None if number % 3 else "home" for number in range(num_events)],
        }
    )


def as_rows(dataset):
    """Every event with its keys, in the order of the folder."""
    items, users = dataset.items["key"][:], dataset.users["key"][:]
    rows = dataset.interactions.to_list()
    for row in rows:
        row["user"], row["item"] = users[row["user"]], items[row["item"]] if row["item"] >= 0 else None
    return rows


def test_nothing_is_lost_and_users_are_in_time_order(make_dataset):
    table = log()
    rows = as_rows(make_dataset(events=table))
    for row in rows:
        row["place"] = json.loads(row.pop("attributes") or "{}").get("place")
        del row["split"]
    key = lambda row: (row["user"], row["time"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(table.select(rows[0].keys()).to_pylist(), key=key)
    for earlier, later in itertools.pairwise(rows):
        assert earlier["user"] != later["user"] or earlier["time"] < later["time"]


@pytest.mark.parametrize("num_pieces", [2, 40])
def test_pieces_and_buckets_change_nothing(make_dataset, monkeypatch, num_pieces):
    table = log(tied=True)
    whole = make_dataset(events=table)
    monkeypatch.setattr(buckets_module, "FLUSH_ROWS", 7)
    monkeypatch.setattr(tables_module, "GROUP_ROWS", 11)
    size = len(table) // num_pieces
    pieces = [table.slice(start, size) for start in range(0, len(table), size)]
    pieced = make_dataset(events=[table.slice(0, 0), *pieces])
    assert as_rows(pieced) == as_rows(whole)
    assert pieced.items["key"][:] == whole.items["key"][:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["leave-one-out", "temporal", "ratio"]))
def test_with_random_ties_the_order_of_the_file_changes_nothing(make_dataset, random, split):
    table = log(num_events=80, num_users=4, tied=True).filter(pa.compute.field("item").is_valid())
    table = (
        table.group_by(["user", "item", "time"])
        .aggregate([("value", "max")])
        .rename_columns(["user", "item", "time", "value"])
    )
    order = list(range(len(table)))
    random.shuffle(order)
    config = PrepareConfig(split=split)
    first, second = make_dataset(config, events=table), make_dataset(config, events=table.take(order))
    assert first.manifest.hash == second.manifest.hash


def test_ties(make_dataset):
    events = {"user": ["a"] * 30, "item": [f"i{number}" for number in range(30)], "time": [5] * 30}
    in_file = make_dataset(PrepareConfig(ties="file"), events=events)
    assert [row["item"] for row in as_rows(in_file)] == events["item"]
    orders = [
        tuple(row["item"] for row in as_rows(make_dataset(PrepareConfig(seed=seed), events=events)))
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != tuple(events["item"])
    assert in_file.manifest.counts["tied_events"] == 30
    assert in_file.manifest.ties == "file"


def test_random_ties_differ_between_users(make_dataset):
    items = [f"i{number}" for number in range(12)]
    events = {"user": ["a"] * 12 + ["b"] * 12, "item": items * 2, "time": [5] * 24}
    rows = as_rows(make_dataset(events=events))
    assert [row["item"] for row in rows[:12]] != [row["item"] for row in rows[12:]]


def test_without_times_the_order_of_the_file_counts(make_dataset):
    dataset = make_dataset(events={"user": ["a", "b"] * 20, "item": [f"i{number}" for number in range(40)]})
    for start in (0, 20):
        numbers = [int(row["item"][1:]) for row in as_rows(dataset)[start : start + 20]]
        assert numbers == sorted(numbers)
    assert dataset.histories().times is None


def test_events_of_unknown_time_come_first_and_count_as_old(make_dataset):
    events = {"user": ["a"] * 4, "item": list("wxyz"), "time": [30, None, 20, None]}
    dataset = make_dataset(events=events)
    assert [row["item"] for row in as_rows(dataset)] == ["x", "z", "y", "w"]
    assert dataset.histories().times.tolist() == [20, 20, 20, 30]
    assert "time" not in dataset.event_record(0)


@pytest.mark.parametrize("split", ["leave-one-out", "temporal", "ratio"])
def test_held_out_events_move_no_id_and_no_training_row(make_dataset, split):
    """Let everybody's held-out events be others: ids, the catalogue and what training sees must not notice."""
    table = log(num_events=600).filter(pa.compute.field("item").is_valid())
    config, items = PrepareConfig(split=split), {"item": [f"i{number}" for number in range(40)]}
    before = make_dataset(config, events=table, items=items)
    held_out = {(row["user"], row["time"]) for row in as_rows(before) if row["split"] > 0}
    columns = table.to_pydict()
    places = [
        place for place, pair in enumerate(zip(columns["user"], columns["time"], strict=True)) if pair in held_out
    ]
    assert len(places) > 20
    for place in places:
        columns["item"][place], columns["value"][place], columns["verb"][place] = f"i{place % 3}", 0.0, "click"
    random = np.random.default_rng(0).permutation(len(table))
    after = make_dataset(config, events=pa.table(columns).take(random), items=items)
    assert after.histories().queries("test").targets.tolist() != before.histories().queries("test").targets.tolist()
    assert after.items["key"][:] == before.items["key"][:]
    assert after.users["key"][:] == before.users["key"][:]
    one, two = before.histories().before("valid"), after.histories().before("valid")
    for name in ("offsets", "items", "times", "values", "verbs"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    one, two = before.judgements("train", 3), after.judgements("train", 3)
    for name in ("users", "items", "labels", "lengths"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_temporal_split_is_global(make_dataset):
    dataset = make_dataset(PrepareConfig(split="temporal", split_shares=(0.7, 0.2, 0.1)), events=log())
    histories = dataset.histories()
    valid, test = dataset.manifest.split.cutoffs
    np.testing.assert_array_equal(histories.splits, (histories.times >= valid) + (histories.times >= test).astype(int))
    assert (histories.splits == 0).mean() == pytest.approx(0.7, abs=0.01)


def test_given_split(make_dataset):
    events = {"user": ["a"] * 4, "item": list("wxyz"), "time": [1, 2, 3, 4], "split": ["test", "train", "Dev", None]}
    dataset = make_dataset(PrepareConfig(split="given"), events=events)
    assert [(row["item"], row["split"]) for row in as_rows(dataset)] == [("x", 0), ("z", 0), ("y", 1), ("w", 2)]


def test_ids_tell_nothing_of_first_sight(make_dataset):
    dataset = make_dataset(events={"user": ["a"] * 200, "item": [f"i{number:03d}" for number in range(200)]})
    places = [int(key[1:]) for key in dataset.items["key"][:]]
    assert abs(np.corrcoef(places, np.arange(200))[0, 1]) < 0.2


def test_catalogue(make_dataset):
    dataset = make_dataset(
        events={"user": ["a", "a"], "item": ["x", "new"]},
        items=[
            {
                "item": ["x", "x", "unsold"],
                "title": ["First", "Second", ""],
                "brand": [None, "B", "C"],
                "colour": [1, 2, None],
            },
            {"item": ["x", "late"], "title": ["Third", "Late"], "price": ["9.50", None]},
        ],
        users={"user": ["a", "quiet"], "age": [30, None]},
    )
    records = dict(zip(dataset.items["key"][:], dataset.item_records(), strict=True))
    assert records == {
        "x": {"title": "First", "colour": 1},
        "unsold": {"brand": "C"},
        "late": {"title": "Late"},
        "new": {"title": "new"},  # nothing else is known of it
    }
    assert dataset.manifest.counts["repeated_item_records"] == 2
    users = dict(zip(dataset.users["key"][:], map(dataset.user_record, range(2)), strict=True))
    assert users == {"a": {"age": 30}, "quiet": {}}


def test_many_items_keep_their_own_record(make_dataset):
    keys = [f"i{number}" for number in range(3000)]
    events = {"user": ["a"] * 10, "item": keys[:10]}
    dataset = make_dataset(events=events, items={"item": keys[::2], "title": [key.upper() for key in keys[::2]]})
    for key, title in zip(dataset.items["key"][:], dataset.items["title"][:], strict=True):
        assert title == (key.upper() if int(key[1:]) % 2 == 0 else key)


def test_nan_values_are_absent_and_negative_ones_stay(make_dataset):
    dataset = make_dataset(events={"user": ["a"] * 3, "item": list("xyz"), "value": [float("nan"), -2.0, None]})
    np.testing.assert_array_equal(dataset.histories().values, [np.nan, -2, np.nan])
    assert ["value" in dataset.event_record(row) for row in range(3)] == [False, True, False]


def test_reviews_and_impressions_follow_the_split_of_their_user(make_dataset):
    dataset = make_dataset(
        events={"user": ["a"] * 4, "item": list("wxyz"), "time": [10, 20, 30, 40]},
        impressions={
            "user": ["a", "a", "a", "a", "a", "new"],
            "item": list("wxyzwx"),
            "time": [5, 29, 30, 40, 99, 1],
            "label": [0, 1, 1, 0, 1, 1],
        },
        reviews={"user": ["a"] * 4, "item": list("wxzz"), "text": list("abcd"), "time": [11, 50, None, 12]},
    )
    keys, users = dataset.items["key"][:], dataset.users["key"][:]
    shown = {(users[r["user"]], keys[r["item"]], r["time"]): r["split"] for r in dataset.impressions.to_list()}
    assert shown == {
        ("a", "w", 5): 0,
        ("a", "x", 29): 0,
        ("a", "y", 30): 1,
        ("a", "z", 40): 2,
        ("a", "w", 99): 2,
        ("new", "x", 1): 0,
    }
    # by its time, or by the held-out event it is about, whichever is later
    assert {row["text"]: row["split"] for row in dataset.reviews.to_list()} == {"a": 0, "b": 2, "c": 2, "d": 2}


def test_conversations(make_dataset):
    talks = [
        {"id": number, "turns": [{"speaker": "USER", "text": "hi", "items": ["x", "none"]}]} for number in range(300)
    ]
    talks.append({"id": "given", "split": "valid", "turns": []})
    dataset = make_dataset(events={"user": ["a"], "item": ["x"]}, conversations=talks)
    lines = [json.loads(line) for line in (dataset.folder / "conversations.jsonl").read_text().splitlines()]
    assert lines[0]["turns"][0]["items"] == [0]
    assert lines[-1]["split"] == 1
    assert np.bincount([line["split"] for line in lines]) / 300 == pytest.approx([0.8, 0.1, 0.1], abs=0.08)
    with pytest.raises(DataError, match="conversation 'given': got split 'later'"):
        make_dataset(events={"user": ["a"], "item": ["x"]}, conversations=[{"id": "given", "split": "later"}])


def test_sessions(make_dataset):
    events = {"user": ["a"] * 4 + ["b"], "item": ["x"] * 5, "time": [0, 100, 201, 202, 9000]}
    rows = as_rows(make_dataset(PrepareConfig(session_gap_s=100), events=events))
    assert sorted((row["user"], row["time"], row["session"]) for row in rows) == [
        ("a", 0, 0), ("a", 100, 0), ("a", 201, 1), ("a", 202, 1), ("b", 9000, 0),
    ]  # fmt: skip
    with pytest.raises(DataError, match="session_gap_s needs times"):
        make_dataset(PrepareConfig(session_gap_s=100), events={"user": ["a"], "item": ["x"]})


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        ({"user": ["a"], "item": ["x"]}, (1, 1, 1, 0)),
        ({"user": ["a"] * 5, "item": ["x"] * 5, "time": [1] * 5}, (1, 1, 5, 1)),
        ({"user": list("abc"), "item": ["x"] * 3}, (3, 1, 3, 0)),
        ({"user": ["a"], "item": pa.nulls(1, pa.string()), "query": ["shoes"]}, (1, 0, 1, 0)),
    ],
)
def test_tiny_logs(make_dataset, events, counts):
    dataset = make_dataset(events=events)
    dataset.verify()
    got = dataset.manifest.counts
    assert (got["users"], got["items"], got["events"], got["test_users"]) == counts
    assert len(dataset.histories().queries("test")) == counts[3]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "no event is left"),
        ({"events": {"user": pa.nulls(0, pa.string()), "item": pa.nulls(0, pa.string())}}, "no event is left"),
        ({"events": {"user": ["a"]}}, "row 1, field 'item': is empty"),
        ({"events": {"item": ["a"]}}, "no column 'user'; got item"),
        (
            {"events": {"user": ["a", None], "item": ["x", "y"]}},
            "events of source 'memory', row 2, field 'user': is empty",
        ),
        ({"events": {"user": ["a", "b"], "item": ["x", ""]}}, "row 2, field 'item': is empty"),
        ({"events": {"user": ["a"], "item": ["x"], "value": ["high"]}}, "row 1, field 'value': got 'high'"),
        ({"events": {"user": ["a"], "item": ["x"], "time": ["soon"]}}, "row 1, field 'time': got 'soon'"),
        ({"events": {"user": ["a"], "item": ["x"], "split": ["later"]}}, "row 1, field 'split': got 'later'"),
        ({"items": {"title": ["x"]}}, "no column 'item'; got title"),
        ({"items": {"item": ["x", None]}}, "items of source 'memory', row 2, field 'item'"),
        (
            {"impressions": {"user": ["a"], "item": ["x"], "time": [1], "label": [2]}},
            "field 'label': got 2, expected 0",
        ),
        ({"impressions": {"user": ["a"], "item": ["x"], "label": [1]}}, "field 'time': is empty"),
    ],
)
def test_bad_input_names_the_place_and_writes_nothing(memory_source, tmp_path, tables, message):
    with pytest.raises(DataError, match=message):
        prepare(memory_source(tables), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bad_row_is_counted_over_pieces(memory_source, tmp_path):
    good, bad = {"user": ["a"] * 10, "item": ["x"] * 10}, {"user": ["a", None], "item": ["x", "x"]}
    with pytest.raises(RowError) as caught:
        prepare(memory_source({"events": [good, bad]}), tmp_path / "out")
    assert caught.value.row == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_shares": (0.5, 0.1, 0.1)}, "sum to 1"),
        ({"split_shares": (0.0, 0.5, 0.5)}, "sum to 1"),
        ({"k_core": -1}, "k_core: got -1"),
        ({"session_gap_s": 0}, "session_gap_s: got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**settings)


def test_splits_that_the_log_cannot_give(make_dataset):
    events = {"user": ["a"] * 4, "item": list("wxyz")}
    with pytest.raises(DataError, match="no event with a time"):
        make_dataset(PrepareConfig(split="temporal"), events=events)
    with pytest.raises(DataError, match="split=given needs a split of the source's own"):
        make_dataset(PrepareConfig(split="given"), events=events)


def test_older_dataset_is_replaced_whole(memory_source, tmp_path):
    out = tmp_path / "out"
    prepare(memory_source({"events": {"user": ["a"], "item": ["x"]}, "reviews": {"user": ["a"], "item": ["x"]}}), out)
    Dataset.open(out).items  # leaves an unpacked table  # noqa: B018
    prepare(memory_source({"events": {"user": ["b"], "item": ["y"]}}), out)
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.yaml", "interactions.parquet", "items.parquet", "users.parquet",
    ]  # fmt: skip
    assert Dataset.open(out).items["key"][:] == ["y"]
    assert list(tmp_path.iterdir()) == [out]


def test_foreign_folder_is_never_touched(memory_source, tmp_path):
    source = memory_source({"events": {"user": ["a"], "item": ["x"]}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="no dataset of ours"):
        prepare(source, tmp_path / "mine")
    with pytest.raises(DataError, match="is a file, expected a folder"):
        prepare(source, tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    prepare(source, tmp_path / "empty")
    assert Dataset.open(tmp_path / "empty").num_items == 1


@pytest.mark.parametrize("target", ["pyarrow.parquet.ParquetWriter.write_table", "pyarrow.ipc.new_file", "os.fsync"])
def test_full_disk_loses_nothing(memory_source, tmp_path, monkeypatch, target):
    out, source = tmp_path / "out", memory_source({"events": log()})
    before = prepare(source, out)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(target, full)
        with pytest.raises(DataError, match=r"No space left on device.*unchanged"):
            prepare(memory_source({"events": log(seed=1)}), out)
    assert list(tmp_path.iterdir()) == [out]
    Dataset.open(out).verify()
    assert Dataset.open(out).manifest == before


def test_failing_exchange_puts_the_old_dataset_back(memory_source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = prepare(memory_source({"events": log()}), out)
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith("dataset"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refuse)
        with pytest.raises(DataError, match="Input/output error"):
            prepare(memory_source({"events": log(seed=1)}), out)
    assert Dataset.open(out).manifest == before
    assert list(tmp_path.iterdir()) == [out]


def test_interruption_loses_nothing(memory_source, tmp_path):
    class Interrupted(memory_source):
        def events(self):
            yield log()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_same_input_gives_the_same_hash_and_another_seed_another(make_dataset):
    hashes = [make_dataset(PrepareConfig(seed=seed), events=log()).manifest.hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_nothing_is_printed_away_from_a_terminal(make_dataset, capfd):
    make_dataset(events=log()).interactions  # noqa: B018
    assert capfd.readouterr() == ("", "")
