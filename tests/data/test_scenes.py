"""The rule of scenes: times, columns, what is refused, and that a request is told as the log was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec.data.histories import NO_TIME
from m6rec.data.scenes import SceneConfig, SceneRule
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, DataError


@pytest.fixture
def dataset(shop: Path) -> Dataset:
    return Dataset.open(shop)


def names(config: SceneConfig, numbers: np.ndarray) -> list[str]:
    return [config.scenes[number] for number in numbers]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("time.season", ["winter", "winter", "spring", "summer", "autumn", "winter"]),
        ("time.month", ["january", "february", "march", "june", "november", "december"]),
        ("time.weekday", ["thursday", "thursday", "friday", "saturday", "friday", "sunday"]),
        ("time.daypart", ["night", "night", "morning", "afternoon", "evening", "evening"]),
    ],
)
def test_times(dataset: Dataset, by: str, expected: list[str]) -> None:
    moments = ["1970-01-01", "2024-02-29T05:59", "2024-03-01T06:00", "2024-06-01T12:30", "2024-11-29T18:00"]
    moments.append("2023-12-31T23:59:59")
    seconds = np.array(moments, dtype="datetime64[s]").astype(np.int64)
    config = SceneConfig(by)
    pairs = dataset.judgements("train", 4).take(np.arange(7))
    pairs.times[:6], pairs.times[6] = seconds, NO_TIME
    assert names(config, SceneRule(config).of_pairs(dataset, pairs)) == [*expected, "other"]


def test_columns_of_candidates_users_and_events(dataset: Dataset) -> None:
    pairs = dataset.judgements("valid", 4)
    config = SceneConfig("item.category", ("books", "lamps"))
    found = names(config, SceneRule(config).of_pairs(dataset, pairs))
    for name, item in zip(found, pairs.items, strict=True):
        category = dataset.item_record(item)["category"]
        assert name == (category if category in ("books", "lamps") else "other")
    assert set(found) == {"books", "lamps", "other"}
    config = SceneConfig("event.time", (str(dataset.event_record(int(pairs.rows[3]))["time"]),))
    assert names(config, SceneRule(config).of_pairs(dataset, pairs))[3] != "other"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("Shop > Books", "Books"), ("Comedy|Drama|War", "Drama"), (["War", "Drama"], "Drama"), (None, "other"), (7, "7")],
)
def test_a_cell_of_several_labels_is_of_the_first_that_is_named(cell: Any, expected: str) -> None:
    config = SceneConfig("item.genre", ("Drama", "Books", "7"))
    (number,) = SceneRule(config).of_request([{} if cell is None else {"genre": cell}], {})
    assert config.scenes[number] == expected


@pytest.mark.parametrize("by", ["time.month", "item.category", "user.age"])
def test_a_request_is_told_as_the_log_is(little_world: Path, by: str) -> None:
    dataset = Dataset.open(little_world)
    values = {"item.category": ("Shop", "Video"), "user.age": ("18-24", "65+")}
    rule = SceneRule(SceneConfig(by, values.get(by, ())))
    pairs = dataset.judgements("train")
    numbers = rule.of_pairs(dataset, pairs)
    assert len(set(numbers.tolist())) > 1
    for pair in range(0, len(pairs), 97):
        context = {**dataset.user_record(pairs.users[pair]), "time": int(pairs.times[pair])}
        assert rule.of_request([dataset.item_record(pairs.items[pair])], context) == numbers[pair]


def test_a_request_that_says_nothing_is_of_the_rest() -> None:
    page = SceneRule(SceneConfig("event.page", ("home",)))
    assert SceneRule(SceneConfig("time.season")).of_request([{}, {}], {}).tolist() == [4, 4]
    assert (page.of_request([{}], {}), page.of_request([{}], {"page": "home"})) == (1, 0)


@pytest.mark.parametrize("time", ["soon", 1_700_000_000_000, float("nan"), [1]])
def test_a_request_with_a_time_that_is_none(time: Any) -> None:
    with pytest.raises(DataError, match=r"time: got .*, expected Unix seconds"):
        SceneRule(SceneConfig("time.season")).of_request([{}], {"time": time})


def test_names_that_stand_nowhere_are_answered_with_those_that_do(dataset: Dataset) -> None:
    rule = SceneRule(SceneConfig("item.category", ("Bookz",)))
    pairs = dataset.judgements("train", 4)
    with pytest.raises(DataError, match=r"scenes Bookz, expected some; item.category holds .*books"):
        rule.check(dataset, replace(pairs, scenes=rule.of_pairs(dataset, pairs)))


def test_impressions_have_no_columns_of_their_own(little_world: Path) -> None:
    dataset = Dataset.open(little_world)
    with pytest.raises(DataError, match="no columns of their own"):
        SceneRule(SceneConfig("event.page", ("home",))).of_pairs(dataset, dataset.judgements("train"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "season"}, "expected time.season"),
        ({"by": "time.year"}, "expected time.season"),
        ({"by": "item."}, "expected time.season"),
        ({"by": "time.season", "names": ("winter",)}, "expected none"),
        ({"by": "item.category"}, "expected values of item.category"),
        ({"by": "item.category", "names": ("a", "a")}, "each once"),
        ({"by": "item.category", "names": ("a", "other")}, "each once"),
        ({"by": "event.value", "names": ("5",)}, "what is to be predicted"),
    ],
)
def test_rules_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SceneConfig(**settings)
