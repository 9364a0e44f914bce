"""Text in, text out: every form of a history, strangers by their words, and a catalogue that changes at once."""

import shutil
from itertools import pairwise, product
from typing import ClassVar

import numpy as np
import pytest

import m6rec
from m6rec.api import load
from m6rec.assemble import open_experiment
from m6rec.backbones.resolve import resolve_backbone
from m6rec.errors import ConfigError, DataError, RunError
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.retrieval.data import RetrievalScorer
from tests.little_shop import ADJECTIVES, NOUNS


@pytest.fixture(scope="module")
def recommender(retrieval_run):
    return load(retrieval_run)


@pytest.fixture
def fresh(retrieval_run):
    """Return a recommender of one's own, to change its catalogue."""
    return load(retrieval_run)


@pytest.fixture(scope="module")
def both(retrieval_run, ranking_run):
    return load(retrieval_run, ranker=ranking_run)


def ids(found):
    return [item.id for item in found]


class TestHistories:
    def test_titles_ids_and_mappings_say_the_same(self, recommender):
        forms = [
            "red shirt; blue lamp",
            " RED  shirt ;; blue lamp; ",
            ["red shirt", "blue lamp"],
            ["g00", "g09"],
            [{"item": "g00"}, {"item": "Blue Lamp"}],
            [{"item": {"id": "g00"}}, {"item": {"title": "blue lamp"}}],
            [{"title": "red shirt"}, "g09"],
        ]
        answers = [recommender.recommend(history, k=5) for history in forms]
        assert len(answers[0]) == 5
        for answer in answers[1:]:
            assert answer == answers[0]

    def test_order_verb_and_time_matter(self, recommender):
        plain = recommender.recommend([{"item": "g00"}, {"item": "g09"}], k=36)
        assert recommender.recommend([{"item": "g09"}, {"item": "g00"}], k=36) != plain
        verbs = [{"item": "g00", "verb": "buy"}, {"item": "g09", "verb": "view"}]
        timed = [{"item": "g00", "time": 1_600_000_000}, {"item": "g09", "time": 1_600_900_000}]
        for history in (verbs, timed):
            scores = {item.id: item.score for item in recommender.recommend(history, k=36)}
            assert any(scores[item.id] != pytest.approx(item.score, abs=1e-7) for item in plain)

    def test_an_unknown_item_is_read_by_its_text(self, recommender):
        known = recommender.recommend(["red shirt"], k=36, exclude_history=False)
        near = recommender.recommend([{"item": {"title": "red shirt", "brand": "red", "category": "shirts"}}], k=36)
        strange = recommender.recommend(["summer film"], k=36)
        other = recommender.recommend(["summer drama"], k=36)
        assert len(known) == len(strange) == 36
        assert len(near) == 35  # the title is known, so it is the item
        assert [item.score for item in strange] != [item.score for item in other]

    def test_a_search_is_an_event(self, recommender):
        searched = recommender.recommend([{"item": "g00"}, {"query": "lamp", "verb": "search"}], k=35)
        plain = recommender.recommend([{"item": "g00"}], k=35)
        assert {item.id for item in searched} == {item.id for item in plain}
        assert [item.score for item in searched] != [item.score for item in plain]

    def test_nobody_knows_anything_of_a_new_user(self, recommender):
        for history in ("", " ; ", []):
            found = recommender.recommend(history, k=3)
            assert len(found) == 3
            assert found == recommender.recommend([], k=3)

    @pytest.mark.parametrize(
        ("history", "part"),
        [
            ([{"verb": "buy"}], "event 1"),
            (["red shirt", 7], "event 2"),
            ([{"item": "g00", "time": "yesterday"}], "time"),
            ([{"item": "g00", "time": float("nan")}], "time"),
            (5, "history"),
            ({"item": "g00"}, "history"),
            ([None], "event 1"),
        ],
    )
    def test_an_unreadable_history_says_where(self, recommender, history, part):
        with pytest.raises(DataError, match=part):
            recommender.recommend(history)

    def test_a_long_history_reads_its_end(self, recommender):
        tail = [f"g{place:02d}" for place in range(8)]
        long = [f"g{place:02d}" for place in range(10, 30)] + tail
        scores = {item.id: item.score for item in recommender.recommend(tail, k=36, exclude_history=False)}
        for item in recommender.recommend(long, k=36, exclude_history=False):
            assert item.score == pytest.approx(scores[item.id], abs=1e-4)

    def test_strange_words_do_no_harm(self, recommender):
        for text in ("[EOS] {{ 7 * 7 }} [bold]", "🙂" * 50, "x" * 10_000, "مرحبا", "红色的灯"):
            assert len(recommender.recommend([text], k=2)) == 2


class TestAnswers:
    def test_an_answer_is_sorted_and_named(self, recommender):
        found = recommender.recommend("red shirt", k=10)
        assert all(one.score >= other.score for one, other in pairwise(found))
        assert len(set(ids(found))) == 10
        assert {item.id: item.title for item in found}.items() <= titles().items()
        assert str(found[0]) == f"{found[0].title}  ({found[0].score:.3f})"

    def test_what_was_met_is_not_recommended(self, recommender):
        assert {"g00", "g09"}.isdisjoint(ids(recommender.recommend(["g00", "g09"], k=36)))
        assert len(recommender.recommend(["g00", "g09"], k=36)) == 34
        assert len(recommender.recommend(["g00", "g09"], k=36, exclude_history=False)) == 36

    def test_k_reaches_from_one_to_everything(self, recommender):
        everything = recommender.recommend("red shirt", k=1000)
        assert len(everything) == 35
        assert recommender.recommend("red shirt", k=1) == everything[:1]
        assert recommender.recommend("red shirt", k=12) == everything[:12]

    @pytest.mark.parametrize("k", [0, -3])
    def test_k_below_one_is_a_mistake(self, recommender, both, k):
        for asked in (recommender, both):
            with pytest.raises(ConfigError, match=f"k: got {k}"):
                asked.recommend("red shirt", k=k)

    def test_it_equals_what_evaluation_scores(self, recommender, retrieval_run):
        experiment = open_experiment(retrieval_run)
        queries = experiment.dataset.histories().queries("test")
        scores = RetrievalScorer(experiment.task, experiment.backbone).score(queries)
        keys = experiment.dataset.items["key"][:]
        history = queries.history
        for row, user in list(enumerate(queries.users.tolist()))[:25]:
            events = [experiment.dataset.event_record(int(number)) for number in history.rows[history.of(user)]]
            places = history.items[history.of(user)]
            for event, item in zip(events, places.tolist(), strict=True):
                if item >= 0:
                    event["item"] = keys[item]
            found = recommender.recommend(events, k=36, exclude_history=False)
            expected = {key: float(scores[row, number]) for number, key in enumerate(keys)}
            assert {item.id: item.score for item in found} == pytest.approx(expected, abs=1e-3)

    def test_every_index_gives_the_same_answer(self, retrieval_run, recommender):
        pytest.importorskip("faiss")
        other = load(retrieval_run, index="faiss")
        for history in ("red shirt", ["g05", "g06", "g07"], ""):
            one, two = recommender.recommend(history, k=20), other.recommend(history, k=20)
            assert ids(one) == ids(two)
            np.testing.assert_allclose([item.score for item in one], [item.score for item in two], atol=1e-4)


class TestCatalog:
    NEW: ClassVar = {"id": "n1", "title": "winter lamp case", "brand": "winter", "category": "lamps"}

    def test_a_new_item_is_on_offer_at_once(self, fresh):
        before = len(fresh.catalog)
        assert "n1" not in ids(fresh.recommend("red shirt", k=50))
        fresh.catalog.add([self.NEW])
        assert len(fresh.catalog) == before + 1
        found = fresh.recommend("red shirt", k=50)
        assert "n1" in ids(found)
        assert next(item for item in found if item.id == "n1").title == "winter lamp case"
        assert "n1" not in ids(fresh.recommend("winter lamp case", k=50))
        assert all(np.isfinite(item.score) for item in found)

    def test_a_removed_item_is_gone_at_once_and_still_known(self, fresh):
        everything = fresh.recommend("red shirt", k=50)
        fresh.catalog.remove([everything[0].id])
        assert ids(fresh.recommend("red shirt", k=50)) == ids(everything)[1:]
        assert len(fresh.catalog) == 35
        known = fresh.recommend(everything[0].title, k=50, exclude_history=False)
        assert everything[0].id not in ids(known)

    def test_it_works_before_the_first_question_too(self, fresh):
        fresh.catalog.remove(["g01"])
        fresh.catalog.add([self.NEW])
        found = ids(fresh.recommend("red shirt", k=50))
        assert "n1" in found
        assert "g01" not in found

    def test_removed_and_added_again(self, fresh):
        fresh.catalog.add([self.NEW])
        fresh.recommend("red shirt")
        fresh.catalog.remove(["n1"])
        assert "n1" not in ids(fresh.recommend("red shirt", k=50))
        fresh.catalog.add([{**self.NEW, "title": "summer film"}])
        found = {item.id: item.title for item in fresh.recommend("red shirt", k=50)}
        assert found["n1"] == "summer film"

    @pytest.mark.parametrize(
        ("items", "part"),
        [
            ([{"title": "no id"}], "without `id`"),
            ([{"id": "x"}], "text"),
            ([{"id": "g00", "title": "taken"}], "taken"),
            ([{"id": "x", "title": "a"}, {"id": "x", "title": "b"}], "twice"),
        ],
    )
    def test_a_wrong_item_changes_nothing(self, fresh, items, part):
        with pytest.raises(DataError, match=part):
            fresh.catalog.add([{"id": "fine", "title": "blue case"}, *items])
        assert len(fresh.catalog) == 36
        assert "fine" not in ids(fresh.recommend("", k=50))

    @pytest.mark.parametrize("asked", [False, True])
    def test_an_unknown_id_removes_nothing(self, fresh, asked):
        if asked:
            fresh.recommend("")
        with pytest.raises(DataError, match="nothere"):
            fresh.catalog.remove(["g00", "nothere"])
        assert len(fresh.catalog) == 36
        fresh.catalog.remove(["g00"])
        with pytest.raises(DataError, match="g00"):
            fresh.catalog.remove(["g01", "g00"])
        assert len(fresh.catalog) == len(fresh.recommend("", k=50)) == 35
        fresh.catalog.remove(["g01", "g01"])
        assert len(fresh.catalog) == len(fresh.recommend("", k=50)) == 34

    def test_an_empty_shelf_gives_an_empty_answer(self, fresh):
        fresh.catalog.remove([f"g{place:02d}" for place in range(36)])
        assert fresh.recommend("red shirt") == []
        fresh.catalog.add([self.NEW])
        assert ids(fresh.recommend("red shirt")) == ["n1"]

    def test_nothing_of_it_reaches_the_run_folder(self, retrieval_run, fresh):
        fresh.catalog.add([self.NEW])
        fresh.recommend("red shirt")
        assert len(load(retrieval_run).catalog) == 36


class TestRanker:
    def test_candidates_are_ordered_by_probability(self, ranking_run):
        ranker = load(ranking_run)
        found = ranker.rank("red shirt; blue lamp", ["g03", "winter phone", {"title": "summer film", "brand": "warm"}])
        assert sorted(item.title for item in found) == ["red lamp", "summer film", "winter phone"]
        assert all(0 < item.score < 1 for item in found)
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
        assert {item.id for item in found} >= {"g03", "g35"}

    def test_it_equals_what_evaluation_scores(self, ranking_run):
        experiment, ranker = open_experiment(ranking_run), load(ranking_run)
        pairs = experiment.task.pairs("valid").take(np.arange(12))
        expected = RankingScorer(experiment.task, experiment.backbone, "valid").score_pairs(pairs)
        keys, history = experiment.dataset.items["key"][:], pairs.history
        for row in range(len(pairs)):
            user = int(pairs.users[row])
            start = int(history.offsets[user])
            rows = history.rows[start : start + int(pairs.lengths[row])]
            events = [experiment.dataset.event_record(int(number)) for number in rows]
            (found,) = ranker.rank(events, [keys[pairs.items[row]]])
            assert found.score == pytest.approx(float(expected[row]), abs=1e-5)

    def test_more_candidates_than_branches(self, ranking_run):
        ranker = load(ranking_run)
        everything = [f"g{place:02d}" for place in range(36)]
        found = {item.id: item.score for item in ranker.rank("red shirt", everything)}
        for key in ("g00", "g20", "g35"):
            (alone,) = ranker.rank("red shirt", [key])
            assert alone.score == pytest.approx(found[key], abs=1e-5)
        assert ranker.rank("red shirt", []) == []

    def test_on_top_of_a_retriever(self, both, recommender):
        found = both.recommend("red shirt", k=5)
        assert len(found) == 5
        assert all(0 < item.score < 1 for item in found)
        best = both.rank("red shirt", ids(recommender.recommend("red shirt", k=50)))
        assert found == best[:5]

    def test_what_only_the_retriever_knows_is_ranked_by_its_text(self, retrieval_run, ranking_run):
        both = load(retrieval_run, ranker=ranking_run)
        both.catalog.add([TestCatalog.NEW])
        both.catalog.remove([f"g{place:02d}" for place in range(36)])
        (found,) = both.recommend("red shirt", k=5)
        assert (found.id, found.title) == ("n1", "winter lamp case")
        (alone,) = load(ranking_run).rank("red shirt", [{**TestCatalog.NEW}])
        assert found.score == pytest.approx(alone.score, abs=1e-6)

    def test_many_recommenders_stand_on_one_backbone(self, retrieval_run, ranking_run, both):
        base = resolve_backbone(both.run.recipe.backbone.name)
        shared = [load(retrieval_run, ranker=ranking_run, backbone=base), load(ranking_run, backbone=base)]
        assert shared[0].recommend("red shirt", k=5) == both.recommend("red shirt", k=5)
        expected = {weight.data_ptr() for weight in base.model.parameters()}
        for recommender in shared:
            assert expected < {weight.data_ptr() for weight in recommender.ranker.backbone.model.parameters()}

    def test_a_candidate_that_nobody_can_read(self, ranking_run):
        ranker = load(ranking_run)
        for candidate in ({"price": 3}, {"id": "nothere"}, "", 7):
            with pytest.raises(DataError, match="candidate"):
                ranker.rank("red shirt", [candidate])

    def test_the_wrong_run_says_so(self, retrieval_run, ranking_run):
        with pytest.raises(RunError, match="retrieval run"):
            load(ranking_run).recommend("red shirt")
        with pytest.raises(RunError, match="ranking run"):
            load(retrieval_run).rank("red shirt", ["g00"])
        with pytest.raises(RunError, match="ranking run"):
            load(retrieval_run, ranker=retrieval_run)
        with pytest.raises(ConfigError, match="did you mean exact"):
            load(retrieval_run, index="exakt").recommend("")


def test_the_package_gives_load_on_first_use(retrieval_run, tmp_path):
    moved = shutil.copytree(retrieval_run, tmp_path / "moved")
    assert isinstance(m6rec.load(moved), m6rec.Recommender)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = m6rec.nothing_like_it


def titles():
    names = product(ADJECTIVES, NOUNS)
    return {f"g{place:02d}": f"{adjective} {noun}" for place, (adjective, noun) in enumerate(names)}
