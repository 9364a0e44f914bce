"""Items in phases: held-out ones never learnt from, shots in time order, one query set, known and asked apart."""

import numpy as np
import pytest

from m6rec.coldstart.episodes import Episodes
from m6rec.coldstart.item_phases import PHASES, ItemPhases, PhaseConfig, Rows
from m6rec.errors import ConfigError, DataError

CONFIG = PhaseConfig(shots=2, min_queries=3)


def judged(num_items: int = 40, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    items = np.repeat(np.arange(num_items), rng.integers(3, 20, num_items))
    items = rng.permutation(items).astype(np.int64)
    labels = rng.integers(0, 2, len(items)).astype(np.float32)
    return Rows(rng.integers(0, 30, len(items)), items, labels, labels)


def test_items_are_apart_and_phases_grow_in_time_order() -> None:
    rows = judged()
    phases = ItemPhases.of(rows, CONFIG, seed=3)
    train, valid, test = (set(phases.items[part].tolist()) for part in ("train", "valid", "test"))
    assert not train & valid
    assert not train & test
    assert not valid & test
    assert train | valid | test == set(rows.items.tolist())
    assert set(rows.items[phases.train].tolist()) == train
    for part, items in (("valid", valid), ("test", test)):
        asked, before = phases.queries(part), np.zeros(0, dtype=np.int64)
        assert set(rows.items[asked].tolist()) == items
        for number, phase in enumerate(PHASES):
            known = phases.known(part, phase)
            assert np.bincount(rows.items[known], minlength=40)[sorted(items)].tolist() == [2 * number] * len(items)
            assert set(before) <= set(known)
            assert not set(known) & set(asked)
            for item in items:  # everything that is known of an item came before everything that is asked
                mine = known[rows.items[known] == item]
                assert mine.max(initial=-1) < asked[rows.items[asked] == item].min()
            before = known


def test_the_seed_alone_divides_and_popular_items_can_be_kept_for_learning() -> None:
    rows = judged()
    first, again, other = (ItemPhases.of(rows, CONFIG, seed).items["test"].tolist() for seed in (1, 1, 2))
    assert first == again != other
    few = ItemPhases.of(rows, PhaseConfig(shots=2, min_queries=3, most=12), seed=1)
    counts = np.bincount(rows.items)
    assert counts[few.items["test"]].max() <= 12
    assert counts[few.items["train"]].max() > 12


def test_judges_pooled_and_within_the_item() -> None:
    phases = ItemPhases.of(judged(), CONFIG, seed=0)
    asked = phases.rows.take(phases.queries("test"))
    assert phases.judge("test", asked.labels) == {"auc": 1.0, "within_item_auc": 1.0}
    means = np.array([asked.labels[asked.items == item].mean() for item in asked.items])
    of_item = phases.judge("test", means)
    assert of_item["auc"] > 0.55  # knowing the items' levels alone looks like something
    assert of_item["within_item_auc"] == 0.5


def test_all_labels_equal_have_no_auc() -> None:
    rows = judged()
    same = Rows(rows.users, rows.items, np.ones(len(rows), np.float32), np.ones(len(rows), np.float32))
    phases = ItemPhases.of(same, CONFIG, seed=0)
    found = phases.judge("test", np.arange(len(phases.queries("test")), dtype=np.float64))
    assert all(np.isnan(value) for value in found.values())


def test_rows_come_in_time_order_and_need_times() -> None:
    columns = {
        "users": np.array([4, 9]),
        "offsets": np.array([0, 2, 3]),
        "items": np.array([0, 1, 0]),
        "values": np.array([5.0, 1.0, 4.0], dtype=np.float32),
        "labels": np.array([1.0, 0.0, 1.0], dtype=np.float32),
    }
    rows = Rows.of(Episodes(**columns, times=np.array([3, 9, 1])))
    assert rows.users.tolist() == [9, 4, 4]
    assert rows.values.tolist() == [4.0, 5.0, 1.0]
    with pytest.raises(DataError, match="a log without times"):
        Rows.of(Episodes(**columns))


def test_says_what_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="got 0 items with 68 judgements"):
        ItemPhases.of(judged(), PhaseConfig(shots=20, min_queries=8), seed=0)
    with pytest.raises(ConfigError, match="got shots 0"):
        PhaseConfig(shots=0)
    with pytest.raises(ConfigError, match="three shares that sum to 1"):
        PhaseConfig(shares=(0.5, 0.5, 0.5))
