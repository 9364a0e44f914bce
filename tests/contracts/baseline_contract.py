"""What every baseline must keep. Inherit, name the baseline, and say what its method can learn."""

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from m6rec.baselines import BASELINES
from m6rec.baselines.base import Baseline, PairBaseline
from m6rec.config import field_help
from m6rec.data.histories import Histories, Judgements, Queries

GROUPS, GROUP_SIZE = 5, 8
LAYOUT = np.random.default_rng(0).permutation(GROUPS * GROUP_SIZE)  # the item at each place of each ring
GROUP_OF = np.argsort(LAYOUT) // GROUP_SIZE


def ring_log(num_users: int = 300, seed: int = 0) -> Histories:
    """Return histories that walk round a ring of items inside one group each, now and then skipping one.

    Who knows groups can rule out four fifths of the catalogue; who knows order can name the next item. The last event
    is test, the one before it valid; some searches (``-1``) stand in between.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_users):
        places = np.cumsum(rng.choice([1, 2], rng.integers(4, 7), p=[0.8, 0.2])) + rng.integers(GROUP_SIZE)
        places = np.array(list(dict.fromkeys((places % GROUP_SIZE).tolist())))
        items = LAYOUT[rng.integers(GROUPS) * GROUP_SIZE + places]
        rows.append(np.insert(items, 1, -1) if rng.random() < 0.3 else items)
    offsets = np.r_[0, np.cumsum([len(row) for row in rows])].astype(np.int64)
    items, splits = np.concatenate(rows).astype(np.int32), np.zeros(offsets[-1], np.int8)
    splits[offsets[1:] - 1], splits[offsets[1:] - 2] = 2, 1
    return Histories(offsets, items, splits, GROUPS * GROUP_SIZE)


def group_judgements(log: Histories, split: int, seed: int = 0) -> Judgements:
    """Return judgements whose label is whether the item is of the user's group, nineteen times out of twenty."""
    rng = np.random.default_rng([seed, split])
    history = log.before("train")
    group = GROUP_OF[history.items[history.offsets[:-1]]]
    users = np.repeat(np.arange(log.num_users, dtype=np.int32), 8)
    own = group[users] * GROUP_SIZE + rng.integers(GROUP_SIZE, size=len(users))
    items = np.where(rng.random(len(users)) < 0.5, LAYOUT[own], rng.integers(log.num_items, size=len(users)))
    yes = (GROUP_OF[items] == group[users]) != (rng.random(len(users)) < 0.05)
    return Judgements(history, users, items.astype(np.int32), yes.astype(np.float32), np.diff(history.offsets)[users])


def check_config(cls: type) -> None:
    """A config is frozen, has a default and a help text for every field."""
    config = cls.Config()  # type: ignore[attr-defined]
    assert dataclasses.is_dataclass(config)
    assert cls.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert set(field_help(cls.Config)) == {field.name for field in dataclasses.fields(config)}  # type: ignore[attr-defined]
    space = cls.search_space  # type: ignore[attr-defined]
    assert set(space) <= {field.name for field in dataclasses.fields(config)}


class BaselineContract:
    """The promises of a ranking baseline."""

    name: ClassVar[str]
    """Shelf name."""
    settings: ClassVar[dict[str, Any]] = {}
    """Settings that make it small enough for a test."""
    learns: ClassVar[Literal["nothing", "groups", "order"]]
    """What of the ring log it must have learnt."""

    @pytest.fixture(scope="class")
    def log(self) -> Histories:
        return ring_log()

    def make(self, **settings: Any) -> Baseline:
        cls = BASELINES.load(self.name)
        return cls(cls.Config(**{**self.settings, **settings}))

    @pytest.fixture(scope="class")
    def fitted(self, log: Histories) -> Baseline:
        baseline = self.make()
        baseline.fit(log.before("train"))
        return baseline

    def test_protocol_and_config(self) -> None:
        baseline = self.make()
        assert isinstance(baseline, Baseline)
        assert baseline.name == self.name
        check_config(type(baseline))

    def test_one_finite_score_an_item(self, fitted: Baseline, log: Histories) -> None:
        scores = fitted.score(log.queries("test"))
        assert scores.shape == (len(log.queries("test")), log.num_items)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_neither_neighbours_in_a_batch_nor_targets_matter(self, fitted: Baseline, log: Histories) -> None:
        queries = log.queries("test")
        scores = fitted.score(queries)
        which = np.array([17, 3, 3, 40])
        np.testing.assert_allclose(fitted.score(queries.take(which)), scores[which], rtol=1e-4, atol=1e-5)
        other = dataclasses.replace(queries, targets=(queries.targets + 1) % log.num_items)
        np.testing.assert_array_equal(fitted.score(other), scores)

    def test_new_users_get_the_popular_items(self, fitted: Baseline, log: Histories) -> None:
        train = log.before("train")
        nothing = train.select(np.zeros(train.num_events, np.bool_))
        queries = Queries(nothing, np.array([0, 1], np.int32), np.arange(3), np.array([0, 1], np.int32))
        scores = fitted.score(queries)
        counts = np.bincount(train.items[train.items >= 0], minlength=log.num_items)
        assert (counts[scores.argmax(1)] == counts.max()).all()

    def test_searches_change_nothing(self, fitted: Baseline, log: Histories) -> None:
        queries = log.queries("test")
        bare = dataclasses.replace(queries, history=queries.history.select(queries.history.items >= 0))
        np.testing.assert_array_equal(fitted.score(bare), fitted.score(queries))

    def test_fitting_again_gives_the_same(self, fitted: Baseline, log: Histories) -> None:
        again = self.make()
        again.fit(log.before("train"))
        np.testing.assert_array_equal(again.score(log.queries("test")), fitted.score(log.queries("test")))

    def test_it_has_learnt_what_its_method_can(self, fitted: Baseline, log: Histories) -> None:
        queries = log.queries("test")
        scores = fitted.score(queries).copy()
        places, events = queries.history.events_of(queries.users)
        items = queries.history.items[events]
        scores[places[items >= 0], items[items >= 0]] = -np.inf
        higher = (scores > scores[np.arange(len(queries)), queries.targets][:, None]).sum(1)
        share_in_group, share_first = (higher < GROUP_SIZE).mean(), (higher == 0).mean()
        assert share_in_group > {"nothing": 0, "groups": 0.9, "order": 0.9}[self.learns]
        assert share_first > {"nothing": 0, "groups": 0, "order": 0.5}[self.learns]


class PairBaselineContract:
    """The promises of a baseline for labelled pairs."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    def log(self) -> Histories:
        return ring_log()

    def make(self, **settings: Any) -> PairBaseline:
        cls = BASELINES.load(self.name)
        return cls(cls.Config(**{**self.settings, **settings}))

    @pytest.fixture(scope="class")
    def fitted(self, log: Histories) -> PairBaseline:
        baseline = self.make()
        baseline.fit_pairs(group_judgements(log, 0), group_judgements(log, 1))
        return baseline

    def test_protocol_and_config(self) -> None:
        baseline = self.make()
        assert isinstance(baseline, PairBaseline)
        assert baseline.name == self.name
        check_config(type(baseline))

    def test_one_probability_a_pair_whatever_the_label(self, fitted: PairBaseline, log: Histories) -> None:
        pairs = group_judgements(log, 2)
        scores = fitted.score_pairs(pairs)
        assert scores.shape == (len(pairs),)
        assert scores.dtype == np.float32
        assert ((scores >= 0) & (scores <= 1)).all()
        flipped = dataclasses.replace(pairs, labels=1 - pairs.labels)
        np.testing.assert_array_equal(fitted.score_pairs(flipped), scores)

    def test_events_after_the_pair_are_not_seen(self, fitted: PairBaseline, log: Histories) -> None:
        pairs = group_judgements(log, 2)
        short = dataclasses.replace(pairs, lengths=np.minimum(pairs.lengths, 1))
        history = pairs.history
        first = np.zeros(history.num_events, np.bool_)
        first[history.offsets[:-1][np.diff(history.offsets) > 0]] = True
        cut = dataclasses.replace(short, history=history.select(first))
        np.testing.assert_allclose(fitted.score_pairs(cut), fitted.score_pairs(short), atol=1e-6)

    def test_fitting_again_gives_the_same(self, fitted: PairBaseline, log: Histories) -> None:
        again, pairs = self.make(), group_judgements(log, 2)
        again.fit_pairs(group_judgements(log, 0), group_judgements(log, 1))
        np.testing.assert_array_equal(again.score_pairs(pairs), fitted.score_pairs(pairs))
