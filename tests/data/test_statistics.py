from dataclasses import replace

import numpy as np
import pytest

from m6rec.data.histories import Histories, Judgements
from m6rec.data.statistics import CROSS_NAMES, ItemStatistics, StatisticsConfig

RECORDS = [
    {"key": "a", "category": "Beauty > Nails > Polish", "brand": "OPI"},
    {"key": "b", "category": "Polish", "brand": "Essie"},
    {"key": "c", "category": "Soap|Polish", "brand": "OPI"},
    {"key": "d"},
]
STARS = StatisticsConfig(threshold=4.0, smoothing=2.0)


def log(users, splits=None, times=None, values=None, num_items=4):
    """One list of items a user; the other columns in the same order."""
    lengths = [len(items) for items in users]
    total = sum(lengths)
    return Histories(
        offsets=np.cumsum([0, *lengths]),
        items=np.array([item for items in users for item in items], dtype=np.int32),
        splits=np.array(splits if splits is not None else [0] * total, dtype=np.int8),
        num_items=num_items,
        times=None if times is None else np.array(times, dtype=np.int64),
        values=None if values is None else np.array(values, dtype=np.float32),
    )


def judged(history, users, items, labels, lengths):
    return Judgements(
        history=history,
        users=np.array(users, dtype=np.int32),
        items=np.array(items, dtype=np.int32),
        labels=np.array(labels, dtype=np.float32),
        lengths=np.array(lengths, dtype=np.int64),
    )


def random_log(seed, num_users=40, num_items=12, timed=True):
    rng = np.random.default_rng(seed)
    users = [rng.integers(-1, num_items, rng.integers(1, 15)).tolist() for _ in range(num_users)]
    total = sum(map(len, users))
    times = np.concatenate([np.sort(rng.integers(0, 30, len(items))) for items in users]) if timed else None
    return log(users, times=times, values=rng.integers(1, 6, total), num_items=num_items)


def training_pairs(history):
    """Every event with an item is a pair that sees what came before it in order."""
    places = np.flatnonzero(history.items >= 0)
    users = history.users[places]
    labels = (history.values[places] >= 4).astype(np.float32)
    return judged(history, users, history.items[places], labels, places - history.offsets[users])


def test_popularity_is_a_percentile_with_ties_halved():
    statistics = ItemStatistics(log([[0, 0, 1], [0, 2]]))
    assert statistics.items(np.arange(4))["popularity"].tolist() == [87.5, 50.0, 50.0, 12.5]


def test_success_is_smoothed_towards_the_mean():
    history = log([[0] * 8 + [1] + [2] * 8], values=[5] * 8 + [5] + [1] * 8)
    rate = ItemStatistics(history, config=STARS).items(np.arange(4))["positive_rate"]
    # One yes of one counts for less than eight of eight.
    assert rate[0] > rate[1] > rate[2]
    assert np.isnan(rate[3])


def test_where_every_event_is_a_yes_rates_say_nothing():
    history = log([[0, 1, 2], [0]])
    statistics = ItemStatistics(history, RECORDS)
    pairs = statistics.pairs(judged(history, [0], [0], [1], [3]), past_only=False)
    assert all(np.isnan(pairs[name]).all() for name in ("positive_rate", "user_rate", "category_rate"))
    assert pairs["category_count"].tolist() == [3.0]


def answers(statistics, history):
    """How many of one user's events were a yes, a no, and nothing, as the numbers tell it."""
    pairs = judged(
        history,
        [0] * history.num_events,
        [0] * history.num_events,
        [1] * history.num_events,
        range(1, history.num_events + 1),
    )
    return statistics.pairs(pairs, past_only=False)["user_rate"]


def test_verbs_can_decide():
    history = replace(log([[0, 1, 2]]), verbs=np.array([0, 1, -1], dtype=np.int16), verb_names=("click", "buy"))
    statistics = ItemStatistics(history, RECORDS, StatisticsConfig(positive_verbs=("buy",), smoothing=2.0))
    np.testing.assert_allclose(answers(statistics, history), [100 / 3, 50.0, 40.0])


def test_event_without_a_value_says_nothing():
    history = log([[0, 1, 2]], values=[np.nan, 5, 1])
    np.testing.assert_allclose(answers(ItemStatistics(history, RECORDS, STARS), history), [np.nan, 200 / 3, 50.0])


def test_value_and_verb_must_both_agree():
    history = replace(
        log([[0, 1, 2]], values=[5, 5, np.nan]), verbs=np.array([0, 1, 1], np.int16), verb_names=("a", "b")
    )
    config = StatisticsConfig(threshold=4.0, positive_verbs=("b",), smoothing=2.0)
    np.testing.assert_allclose(answers(ItemStatistics(history, RECORDS, config), history), [100 / 3, 50.0, 60.0])


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_held_out_event_is_counted(split):
    users, splits = [[0, 1, 2], [1, 1, 3]], [0, 1, 2, 0, 1, 2]
    known = ItemStatistics(log(users, splits, values=[5, 1, 1, 1, 5, 5]), RECORDS, STARS, split)
    other = ItemStatistics(log([[0, 3, 3], [1, 2, 0]], splits, values=[5, 5, 5, 1, 1, 1]), RECORDS, STARS, split)
    for name, column in known.items(np.arange(4)).items():
        np.testing.assert_array_equal(column, other.items(np.arange(4))[name])


def test_test_statistics_may_count_validation_events():
    history = log([[0, 1, 2]], [0, 1, 2])
    assert ItemStatistics(history, split="test").items(np.array([1]))["popularity"] > 50
    assert ItemStatistics(history, split="valid").items(np.array([1]))["popularity"] < 50


def test_bond_with_a_candidate_by_hand():
    history = log([[0, 1, -1, 0, 3]], values=[5, 1, 5, 5, 1])
    statistics = ItemStatistics(history, RECORDS, STARS)
    pairs = statistics.pairs(judged(history, [0, 0, 0], [2, 0, 3], [1, 1, 0], [2, 4, 0]), past_only=False)
    # The third item shares "Polish" with the first two and the brand with the first one.
    np.testing.assert_array_equal(pairs["category_count"], [2.0, 3.0, np.nan])
    np.testing.assert_array_equal(pairs["brand_count"], [1.0, 2.0, np.nan])
    assert pairs["item_count"].tolist() == [0.0, 2.0, 0.0]
    # Two events, one yes, and two of the average .5; the search is no event with an item.
    np.testing.assert_allclose(pairs["user_rate"], [50.0, 60.0, np.nan])
    assert np.isnan(pairs["category_rate"][2])


def hold_scales(statistics, original):
    """Keep the average and the percentiles of the whole log still, to see what else changes."""
    for name in ("_mean", "_rates", "_shares"):
        setattr(statistics, name, getattr(original, name))


def test_a_pair_knows_nothing_of_its_own_event_or_of_later_ones():
    history = random_log(0)
    pairs = training_pairs(history)
    original = ItemStatistics(history, RECORDS * 3, STARS)
    before = original.pairs(pairs, past_only=True)
    rng = np.random.default_rng(1)
    for row in rng.choice(len(pairs), 15, replace=False):
        own, length = history.of(int(pairs.users[row])), int(pairs.lengths[row])
        values, items = history.values.copy(), history.items.copy()
        values[own.start + length : own.stop] = 6 - values[own.start + length : own.stop]
        items[own.start + length : own.stop] = 11 - np.abs(items[own.start + length : own.stop])
        changed = replace(history, values=values, items=items)
        statistics = ItemStatistics(changed, RECORDS * 3, STARS)
        hold_scales(statistics, original)
        after = statistics.pairs(replace(pairs, history=changed), past_only=True)
        for name in before:
            np.testing.assert_allclose(after[name][row], before[name][row], err_msg=name)


def test_without_times_the_user_s_own_events_with_the_item_are_taken_out():
    history = random_log(3, timed=False)
    pairs = training_pairs(history)
    original = ItemStatistics(history, RECORDS * 3, STARS)
    numbers = original.pairs(pairs, past_only=True)
    for row in range(0, len(pairs), 7):
        keep = (history.users != pairs.users[row]) | (history.items != pairs.items[row])
        rest = ItemStatistics(history.select(keep), config=STARS)
        hold_scales(rest, original)
        for name, value in rest.items(pairs.items[[row]]).items():
            np.testing.assert_allclose(numbers[name][row], value[0], err_msg=name)


def test_success_may_be_counted_from_what_was_shown():
    history = log([[0, 1], [0]])
    shown = judged(history, [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0])
    rate = ItemStatistics(history, config=StatisticsConfig(smoothing=1.0), judged=shown).items(np.arange(2))
    assert rate["positive_rate"][0] > rate["positive_rate"][1]


def test_records_alone_give_the_same_bond_as_arrays():
    history = random_log(4, num_items=4)
    statistics = ItemStatistics(history, RECORDS, STARS)
    pairs = training_pairs(history)
    columns = statistics.pairs(pairs, past_only=False)
    for row in range(0, len(pairs), 5):
        start = history.offsets[pairs.users[row]]
        places = range(start, start + pairs.lengths[row])
        events = [
            {
                "item": RECORDS[history.items[place]] if history.items[place] >= 0 else None,
                "value": history.values[place],
            }
            for place in places
        ]
        numbers = statistics.cross_of(events, [RECORDS[0], RECORDS[pairs.items[row]]], STARS)
        assert set(numbers) == set(CROSS_NAMES)
        for name, values in numbers.items():
            np.testing.assert_allclose(values[1], columns[name][row], err_msg=name)


def test_bond_of_a_stranger_with_unknown_items():
    events = [{"item": "just words"}, {"query": "soap"}, {}, {"item": {"brand": "Dove"}}]
    numbers = ItemStatistics.cross_of(events, [{"title": "new"}, {"brand": "Dove"}, {"title": "just words"}])
    assert np.isnan(numbers["category_count"]).all()
    np.testing.assert_array_equal(numbers["brand_count"], [np.nan, 1.0, np.nan])
    assert numbers["item_count"].tolist() == [0.0, 0.0, 1.0]
    assert np.isnan(numbers["user_rate"]).all()
    assert ItemStatistics.cross_of([], [{"category": "x"}])["category_count"].tolist() == [0.0]
    assert ItemStatistics.cross_of(events, [])["category_count"].tolist() == []


def test_empty_log():
    statistics = ItemStatistics(log([[]]), RECORDS, STARS)
    assert np.isnan(statistics.items(np.arange(4))["positive_rate"]).all()
    none = statistics.pairs(judged(log([[]]), [], [], [], []), past_only=True)
    assert all(len(column) == 0 for column in none.values())
