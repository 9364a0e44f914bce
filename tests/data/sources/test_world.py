import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from m6rec.data.prepare import prepare
from m6rec.data.sources.world import World, WorldConfig
from m6rec.data.sources.world_frame import EXTRA, SHOP, START, SUPPLY, TOOL, VIDEO
from m6rec.data.sources.world_words import words
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, DataError
from tests.contracts.source_contract import SourceContract

SMALL = WorldConfig(users=400, items=600, dialogues=40)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SMALL)


@pytest.fixture(scope="module")
def events(world: World) -> pa.Table:
    return pa.concat_tables(world.events())


@pytest.fixture(scope="module")
def chosen(events: pa.Table) -> dict[str, np.ndarray]:
    """Choices only: user, item, time, verb as arrays in log order."""
    table = events.filter(events["item"].is_valid())
    return {name: np.array(table[name].to_pylist()) for name in ("user", "item", "time", "verb")}


class TestWorldIsASource(SourceContract):
    @pytest.fixture
    def source(self) -> World:
        return World(WorldConfig(users=40, items=300, dialogues=5))


class TestDefaultWorld:
    def test_is_as_large_as_promised(self) -> None:
        world = World()
        assert world.config.users >= 3_000
        assert len(world.catalogue) >= 1_200
        assert len(set(world.catalogue.texts["title"])) == len(world.catalogue)
        events = sum(len(table) for table in world.events())
        assert 60_000 <= events <= 100_000


class TestItems:
    def test_two_domains_with_prices_in_the_shop_only(self, world: World) -> None:
        items = world.catalogue
        assert 0.4 < (items.domain == SHOP).mean() < 0.6
        assert all((price is None) == (domain == VIDEO) for price, domain in zip(
            items.texts["price"], items.domain, strict=True))  # fmt: skip

    def test_titles_never_repeat_in_a_large_catalogue(self) -> None:
        titles = World(WorldConfig(items=12_000)).catalogue.texts["title"]
        assert len(set(titles)) == len(titles)

    def test_a_season_follows_its_prequel_in_title_maker_and_style(self, world: World) -> None:
        items = world.catalogue
        later = np.flatnonzero(items.prequel >= 0)
        assert len(later) > 20
        for item in later:
            before = items.prequel[item]
            title, earlier = items.texts["title"][item], items.texts["title"][before]
            assert title.rpartition(", Season ")[0] == earlier.rpartition(", Season ")[0]
            assert items.maker[item] == items.maker[before]
            assert items.style[item] == items.style[before]
            assert items.release[item] >= items.release[before]

    def test_the_same_style_is_said_in_many_words(self, world: World) -> None:
        items = world.catalogue
        for style, entry in enumerate(words().styles):
            told = [items.texts["title"][item] for item in np.flatnonzero(items.style == style)]
            every = (*entry.adjectives, *entry.goods, *entry.finishes, *entry.tails)
            shares = [sum(word in title for title in told) / len(told) for word in every]
            assert max(shares) < 0.4, f"{entry.name} can be told by one word"

    def test_many_items_come_late(self, world: World) -> None:
        release = world.catalogue.release
        assert 0.2 < (release > START).mean() < 0.6


class TestBehaviour:
    def test_times_rise_and_no_item_comes_twice(self, chosen: dict[str, np.ndarray]) -> None:
        same = chosen["user"][1:] == chosen["user"][:-1]
        assert (np.diff(chosen["time"])[same] > 0).all()
        pairs = set(zip(chosen["user"], chosen["item"], strict=True))
        assert len(pairs) == len(chosen["item"])

    def test_nothing_is_chosen_before_it_is_out(self, world: World, chosen: dict[str, np.ndarray]) -> None:
        release = dict(zip(world.catalogue.keys, world.catalogue.release, strict=True))
        assert all(release[item] <= time for item, time in zip(chosen["item"], chosen["time"], strict=True))

    def test_a_search_stands_right_before_a_choice(self, events: pa.Table) -> None:
        rows = events.to_pylist()
        searches = [place for place, row in enumerate(rows) if row["verb"] == "search"]
        assert len(searches) > 100
        for place in searches:
            search, choice = rows[place : place + 2]
            assert search["item"] is None
            assert search["query"]
            assert choice["verb"] != "search"
            assert choice["user"] == search["user"]
            assert 0 < choice["time"] - search["time"] < 120

    def test_verbs_fit_the_domain(self, chosen: dict[str, np.ndarray]) -> None:
        shop = np.char.startswith(chosen["item"].astype(str), "S")
        assert set(chosen["verb"][shop]) == {"click", "cart", "purchase"}
        assert set(chosen["verb"][~shop]) == {"click", "watch"}

    def test_popularity_is_skewed(self, chosen: dict[str, np.ndarray]) -> None:
        counts = np.sort(np.unique(chosen["item"], return_counts=True)[1])[::-1]
        assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()

    def test_users_come_late_too(self, world: World) -> None:
        joined = [month for table in world.users() for month in table["joined"].to_pylist()]
        assert np.mean([month >= "2024-06" for month in joined]) > 0.05

    def test_accessories_follow_their_tool(self, world: World, chosen: dict[str, np.ndarray]) -> None:
        items = world.catalogue
        row = {key: place for place, key in enumerate(items.keys)}
        place = np.array([row[key] for key in chosen["item"]])
        same = chosen["user"][1:] == chosen["user"][:-1]
        fits = (items.theme[place[1:]] == items.theme[place[:-1]]) & (
            items.product[place[1:]] == items.product[place[:-1]]
        )

        def share(first: int, second: int) -> float:
            after = same & (items.kind[place[:-1]] == first)
            return float((fits & (items.kind[place[1:]] == second))[after].mean())

        assert share(TOOL, EXTRA) > 2 * share(EXTRA, TOOL)

    def test_seasons_turn_round_in_the_south(self) -> None:
        world = World(WorldConfig(users=1024, items=600))
        log = next(world._logs())
        north = np.array([not place.south for place in words().places])[log.people.place]
        theme = [theme.name for theme in words().themes].index("winter")
        months = np.array([datetime.datetime.fromtimestamp(time, datetime.UTC).month for time in log.times().tolist()])
        skiing = world.catalogue.theme[log.item] == theme
        share = {
            (side, half): skiing[(north[log.user] == side) & (np.isin(months, (12, 1, 2)) == half)].mean()
            for side in (True, False)
            for half in (True, False)
        }
        assert share[True, True] > 1.5 * share[True, False]
        assert share[False, True] < share[False, False]

    def test_the_same_seed_is_the_same_world_and_another_is_not(self, events: pa.Table) -> None:
        assert pa.concat_tables(World(SMALL).events()).equals(events)
        other = World(WorldConfig(users=400, items=600, dialogues=40, seed=1))
        assert not pa.concat_tables(other.events()).equals(events)

    def test_more_users_leave_the_first_ones_as_they_are(self) -> None:
        small, large = (World(WorldConfig(users=users, items=300)) for users in (1024, 1100))
        assert next(small.events()).equals(next(large.events()))


class TestOracle:
    @pytest.fixture(scope="class")
    def last(self, events: pa.Table) -> dict[str, np.ndarray]:
        """Every user's last choice, and the time of the event right before it."""
        users, items, times = (np.array(events[name].to_pylist(), dtype=object) for name in ("user", "item", "time"))
        ends = np.flatnonzero(np.r_[users[1:] != users[:-1], True])
        return {"user": users[ends], "item": items[ends], "after": times[ends - 1].astype(np.int64)}

    def test_is_a_distribution_over_what_is_new_and_out(self, world: World, last: dict[str, np.ndarray]) -> None:
        oracle = world.oracle()
        table = oracle.next_item_probabilities(last["user"].tolist(), last["after"])
        assert table.shape == (400, 600)
        np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
        log = next(world._logs())
        earlier = log.step < log.people.lengths[log.user] - 1
        assert table[log.user[earlier], log.item[earlier]].max() == 0

    def test_is_right_on_average(self, world: World) -> None:
        """Surprise equals entropy: what the oracle expects is what happens (a wrong term would show at once)."""
        log, oracle = next(world._logs()), world.oracle()
        rng = np.random.default_rng(0)
        some = rng.choice(len(log.item), 3000, replace=False)
        some = some[log.step[some] > 0]
        users = [f"u{user:07d}" for user in log.user[some]]
        before = log.people.times[log.user[some], log.step[some] - 1]
        table = oracle.next_item_probabilities(users, before).astype(np.float64)
        surprise = -np.log(table[np.arange(len(some)), log.item[some]])
        entropy = -(table * np.log(np.maximum(table, 1e-30))).sum(axis=1)
        error = (surprise - entropy).std() / np.sqrt(len(some))
        assert abs((surprise - entropy).mean()) < 4 * error

    def test_a_search_that_is_known_tells_more(self, world: World) -> None:
        log, oracle = next(world._logs()), world.oracle()
        some = np.flatnonzero((log.people.searched[log.user, log.step] >= 0) & (log.step > 0))
        users = [f"u{user:07d}" for user in log.user[some]]
        at = log.user[some], log.step[some]
        known = oracle.next_item_probabilities(users, log.people.search_times[at])
        unknown = oracle.next_item_probabilities(users, log.people.search_times[at] - 1)
        pick = np.arange(len(some)), log.item[some]
        assert np.log(known[pick]).mean() > np.log(unknown[pick]).mean() + 0.5

    def test_beats_popularity_by_far(self, world: World, last: dict[str, np.ndarray]) -> None:
        oracle, log = world.oracle(), next(world._logs())
        table = oracle.next_item_probabilities(last["user"].tolist(), last["after"])
        target = np.array([oracle.item_keys.index(key) for key in last["item"]])
        popularity = np.bincount(log.item, minlength=600)

        def hits(scores: np.ndarray) -> float:
            return float(((scores > scores[np.arange(400), target][:, None]).sum(axis=1) < 10).mean())

        assert hits(table) > 3 * hits(np.tile(popularity, (400, 1)))

    def test_click_probabilities_are_calibrated(self, world: World) -> None:
        shown = pa.concat_tables(world.impressions())
        labels = shown["label"].to_numpy()
        arguments = shown["user"].to_pylist(), shown["item"].to_pylist(), shown["time"].to_numpy()
        clicked = world.oracle().click_probabilities(*arguments)
        assert ((clicked >= 0) & (clicked <= 1)).all()
        for low, high in ((0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 1.01)):
            inside = (clicked >= low) & (clicked < high)
            spread = np.sqrt((clicked * (1 - clicked))[inside].mean() / inside.sum())
            assert abs(labels[inside].mean() - clicked[inside].mean()) < 4 * spread + 0.01

    def test_says_what_it_does_not_know(self, world: World) -> None:
        oracle = world.oracle()
        with pytest.raises(DataError, match="user 'u0000400', expected one of this world's 400"):
            oracle.next_item_probabilities(["u0000400"], np.array([0]))
        with pytest.raises(DataError, match="no event after"):
            oracle.next_item_probabilities(["u0000000"], np.array([2_000_000_000]))
        with pytest.raises(DataError, match="item 'X1'"):
            oracle.click_probabilities(["u0000000"], ["X1"], np.array([0]))

    def test_fits_a_prepared_dataset(self, tmp_path: Path) -> None:
        world = World(WorldConfig(users=60, items=300, dialogues=0))
        prepare(world, tmp_path / "world")
        dataset = Dataset.open(tmp_path / "world")
        queries = dataset.histories().queries("test")
        keys = [dataset.users["key"][int(user)] for user in queries.users]
        times = queries.history.times
        assert times is not None
        after = times[queries.history.offsets[queries.users + 1] - 1]
        table = world.oracle().next_item_probabilities(keys, after)
        columns = {key: place for place, key in enumerate(world.oracle().item_keys)}
        truth = [table[row, columns[dataset.items["key"][int(item)]]] for row, item in enumerate(queries.targets)]
        assert min(truth) > 0


class TestWords:
    def test_reasons_follow_from_item_and_taste(self, world: World) -> None:
        items, reviews = world.catalogue, pa.concat_tables(world.reviews()).to_pylist()
        row = {key: place for place, key in enumerate(items.keys)}
        named = 0
        for review in reviews:
            item = row[review["item"]]
            for part in filter(None, review["reason"].split("; ")):
                for style in words().styles:
                    if f"{style.name} style" in part:
                        assert words().styles[items.style[item]] is style
                        phrases = style.like if part.startswith("liked") else style.dislike
                        assert any(phrase.lower() in review["text"].lower() for phrase in phrases)
                        named += 1
        assert named > 50

    def test_praise_goes_with_high_ratings(self, world: World) -> None:
        reviews = pa.concat_tables(world.reviews()).to_pylist()
        liked = [r["value"] for r in reviews if r["reason"].startswith("liked") and "disliked" not in r["reason"]]
        disliked = [r["value"] for r in reviews if r["reason"].startswith("disliked")]
        assert np.mean(liked) > np.mean(disliked) + 0.7

    def test_reviews_come_after_the_event(self, world: World, chosen: dict[str, np.ndarray]) -> None:
        when = dict(zip(zip(chosen["user"], chosen["item"], strict=True), chosen["time"], strict=True))
        for review in pa.concat_tables(world.reviews()).to_pylist():
            assert review["time"] > when[review["user"], review["item"]]

    def test_dialogues_name_the_titles_that_they_list(self, world: World) -> None:
        titles = dict(zip(world.catalogue.keys, world.catalogue.texts["title"], strict=True))
        dialogues = list(world.conversations())
        assert len(dialogues) == 40
        assert {dialogue["split"] for dialogue in dialogues} == {"train", "valid", "test"}
        for dialogue in dialogues:
            for turn in dialogue["turns"]:
                assert all(titles[key] in turn["text"] for key in turn["items"])
            assert any(turn["speaker"] == "SYSTEM" and turn["items"] for turn in dialogue["turns"])

    def test_supplies_have_no_finish(self, world: World) -> None:
        items = world.catalogue
        tangible = (items.domain == SHOP) & (items.kind != SUPPLY)
        assert all((finish is not None) == real for finish, real in zip(items.texts["finish"], tangible, strict=True))


@pytest.mark.parametrize(("field", "value"), [("users", 0), ("items", 50), ("dialogues", -1), ("seed", -1)])
def test_impossible_worlds_are_refused(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field}: got {value}, expected at least"):
        WorldConfig(**{field: value})
