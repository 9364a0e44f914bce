import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec.data.prepare import PrepareConfig
from m6rec.errors import DataError


def kept(dataset):
    items, users = dataset.items["key"][:], dataset.users["key"][:]
    return [
        (users[row["user"]], items[row["item"]] if row["item"] >= 0 else None) for row in dataset.interactions.to_list()
    ]


def slow_k_core(pairs, k):
    while True:
        users, items = [user for user, _ in pairs], [item for _, item in pairs]
        left = [(user, item) for user, item in pairs if users.count(user) >= k and items.count(item) >= k]
        if left == pairs:
            return pairs
        pairs = left


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("vwxyz")), min_size=1, max_size=60), st.integers(1, 5)
)
def test_k_core_equals_the_plain_loop(make_dataset, pairs, k):
    events = {"user": [user for user, _ in pairs], "item": [item for _, item in pairs]}
    expected = slow_k_core(pairs, k)
    if not expected:
        with pytest.raises(DataError, match=f"k_core={k} leaves no event"):
            make_dataset(PrepareConfig(k_core=k), events=events)
        return
    dataset = make_dataset(PrepareConfig(k_core=k), events=events, items={"item": ["unsold"], "title": ["Unsold"]})
    assert sorted(kept(dataset)) == sorted(expected)
    assert sorted(dataset.items["key"][:]) == sorted({item for _, item in expected})
    assert sorted(dataset.users["key"][:]) == sorted({user for user, _ in expected})
    (logged,) = dataset.manifest.filters
    assert (logged.name, logged.setting, logged.events_removed) == ("k_core", str(k), len(pairs) - len(expected))


def test_k_core_counts_no_search_but_keeps_those_of_its_users(make_dataset):
    events = {
        "user": ["a", "a", "a", "b", "b", "c", "c"],
        "item": pa.array(["x", "y", None, "x", "y", None, None]),
        "query": [None, None, "shoes", None, None, "hats", "hats"],
    }
    dataset = make_dataset(PrepareConfig(k_core=2), events=events)
    assert sorted(kept(dataset), key=str) == sorted(
        [("a", "x"), ("a", "y"), ("a", None), ("b", "x"), ("b", "y")], key=str
    )


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [("x", 1), ("x", 2), ("x", 2), ("x", 2), ("y", 3)]),
        ("exact", [("x", 1), ("x", 2), ("x", 2), ("y", 3)]),
        ("item", [("x", 1), ("y", 3)]),
    ],
)
def test_deduplicate(make_dataset, how, expected):
    events = {
        "user": ["a"] * 5,
        "item": ["x", "x", "y", "x", "x"],
        "time": [2, 2, 3, 1, 2],
        "verb": ["click", "click", "click", "click", "buy"],
        "mark": ["first", "second", None, None, None],
    }
    dataset = make_dataset(PrepareConfig(deduplicate=how, ties="file"), events=events)
    items = dataset.items["key"][:]
    rows = dataset.interactions.to_list()
    assert [(items[row["item"]], row["time"]) for row in rows] == expected
    assert sum(f.events_removed for f in dataset.manifest.filters) == 5 - len(expected)
    marks = [json.loads(row["attributes"] or "{}").get("mark") for row in rows]
    assert ("second" in marks) == (how == "none")  # of two equal events the first of the file stays


def test_deduplicate_by_item_keeps_searches(make_dataset):
    events = {"user": ["a"] * 3, "item": pa.array([None, None, "x"]), "query": ["shoes", "shoes", None]}
    assert make_dataset(PrepareConfig(deduplicate="item"), events=events).manifest.counts["events"] == 3
    assert make_dataset(PrepareConfig(deduplicate="exact"), events=events).manifest.counts["events"] == 2


def test_min_value_keeps_events_without_one_and_is_logged(make_dataset):
    events = {"user": ["a", "a", "a", "b"], "item": list("wxyz"), "value": [4.0, 3.5, np.nan, -1.0]}
    dataset = make_dataset(
        PrepareConfig(min_value=4), events=events, items={"item": ["x"], "title": ["In the catalogue"]}
    )
    assert sorted(kept(dataset)) == [("a", "w"), ("a", "y")]
    assert sorted(dataset.items["key"][:]) == ["w", "x", "y"]  # x has a record; nothing is left of z
    assert dataset.users["key"][:] == ["a"]
    (logged,) = dataset.manifest.filters
    assert (logged.events_removed, logged.users_left, logged.items_left) == (2, 1, 2)


def test_filters_run_in_a_fixed_order(make_dataset):
    # without the low rating, and without the repeat, nobody is left in the 2-core
    events = {"user": ["a", "a", "a"], "item": ["x", "x", "x"], "value": [5.0, 5.0, 1.0], "time": [1, 1, 2]}
    assert make_dataset(PrepareConfig(k_core=3), events=events).manifest.counts["events"] == 3
    with pytest.raises(DataError, match="k_core=2 leaves no event of 1"):
        make_dataset(PrepareConfig(k_core=2, min_value=3, deduplicate="exact"), events=events)


def test_no_filter_unless_asked(make_dataset):
    events = {"user": ["a", "a"], "item": ["x", "x"], "value": [-5.0, -5.0], "time": [1, 1]}
    dataset = make_dataset(events=events)
    assert dataset.manifest.filters == ()
    assert dataset.manifest.counts["events"] == 2


def test_movielens_five_core_has_the_published_counts(make_dataset, shared_data):
    from m6rec.data.sources.table import CsvSource, TableConfig

    folder = shared_data / "ml-latest-small"
    if not (folder / "ratings.csv.gz").exists():
        pytest.skip("no ml-latest-small")
    source = CsvSource(TableConfig(path=str(folder / "ratings.csv.gz"), items=str(folder / "movies.csv.gz")))
    dataset = make_dataset(PrepareConfig(k_core=5), events=list(source.events()), items=list(source.items()))
    counts = dataset.manifest.counts
    assert (counts["users"], counts["items"], counts["events"]) == (610, 3650, 90274)
    assert {"title", "category"} <= set(dataset.item_record(0))
