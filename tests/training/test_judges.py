"""The ranker's part: what it goes by, how sure it is, and when it cannot be trusted."""

import numpy as np
import pytest
import torch

from m6rec.assemble import open_experiment
from m6rec.data.histories import Histories
from m6rec.errors import RunError
from m6rec.tasks.retrieval.data import RetrievalScorer
from m6rec.tasks.retrieval.neighbours import Links, sharpen
from m6rec.training.dense_config import DenseConfig
from m6rec.training.judges import CrossJudge, Exam, FusedJudge, Ranker, examine
from m6rec.training.mining import Retriever, validation_lists
from m6rec.training.moments import Moments
from m6rec.workflows.stages import open_teachers


@pytest.fixture(scope="module")
def experiment(retrieval_run):
    return open_experiment(retrieval_run)


@pytest.fixture(scope="module")
def space(experiment):
    return experiment.task.space()


def moments_of(queries):
    return Moments.after(queries.history, queries.users)


class TestFused:
    def test_it_is_the_served_score_but_for_who_is_counted(self, experiment, space):
        queries = experiment.dataset.histories().queries("valid")
        retriever = Retriever(experiment.task, experiment.backbone)
        moments = moments_of(queries)
        items = np.tile(np.arange(len(experiment.task.catalogue), dtype=np.int32), (len(moments), 1))
        _, segments = experiment.task.material.table.readable(queries.history)
        states = retriever.at(moments, segments)
        numbers = FusedJudge(space, experiment.task.material.train).numbers(
            moments, items, retriever.logits(states, items)
        )
        learnt, _, alike = RetrievalScorer(experiment.task, experiment.backbone).parts(queries)
        np.testing.assert_allclose(numbers[..., 0], learnt, rtol=1e-3, atol=1e-3)
        searched = np.array(
            [(queries.history.items[queries.history.of(user)][-5:] < 0).any() for user in queries.users]
        )
        np.testing.assert_allclose(numbers[~searched, :, 2], alike[~searched], rtol=1e-3, atol=1e-3)

    def test_a_users_own_events_do_not_count(self, experiment, space):
        train = experiment.task.material.train
        judge, user = FusedJudge(space, train), 7
        owned = train.of(user)
        moments = Moments.before(train, np.arange(owned.start + 1, owned.stop))
        items = np.tile(np.arange(train.num_items, dtype=np.int32), (len(moments), 1))
        found = judge.numbers(moments, items, np.zeros(items.shape, np.float32))[..., 1]
        others = Links.count(train.select(train.users % judge.folds != user % judge.folds), space.config.window)
        histories = [moments.items(row, space.config.window) for row in range(len(moments))]
        expected = sharpen(space.kin.inherit(others.follow(histories, train.num_items, space.config)))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        without = Histories(**{**vars(train), "items": np.where(train.users == user, -1, train.items).astype(np.int32)})
        again = FusedJudge(space, without).numbers(moments, items, np.zeros(items.shape, np.float32))[..., 1]
        np.testing.assert_allclose(again, found, rtol=1e-5)


def test_a_ranking_run_judges(ranking_run, experiment):
    found = open_experiment(ranking_run)
    judge = CrossJudge(found.task, found.backbone)
    train = experiment.task.material.train
    moments = Moments.before(train, np.array([3, 40]))
    items = np.array([[1, 2, -1], [5, 1, 0]], np.int32)
    numbers = judge.numbers(moments, items, np.zeros((2, 3), np.float32))
    assert numbers.shape == (2, 3, 1)
    assert numbers[0, 2, 0] == 0
    assert len(np.unique(numbers)) > 3
    alone = judge.numbers(moments.take(np.array([1])), items[1:], np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(alone[0], numbers[1], rtol=1e-3, atol=1e-4)


class TestExam:
    def exam(self, sign, lists=200, depth=9):
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 50, (lists, 1 + depth)).astype(np.int32)
        ids[::3, 5:] = -1
        better = rng.normal(size=(lists, 1 + depth)) - np.linspace(0, 1, 1 + depth)
        better[:, 0] += 1
        retrieved = np.sort(rng.normal(size=(lists, 1 + depth)), axis=1)[:, ::-1].copy()
        retrieved[:, 0] = rng.normal(size=lists) * 2
        random = rng.normal(size=(lists, 5, 1)) - 2
        return Exam(
            ids,
            retrieved.astype(np.float32),
            sign * better[..., None].astype(np.float32),
            sign * random.astype(np.float32),
        )

    def test_a_good_one(self):
        ranker = Ranker((1.0,))
        report = examine(ranker, self.exam(1))
        assert report.lists == 200
        assert report.is_better
        assert report.auc > 0.9
        assert 0.2 < report.found < 1
        assert ranker.slope > 0
        assert report.ece < 0.03

    def test_swapped_labels_are_told(self):
        with pytest.raises(RunError, match="label order swapped"):
            examine(Ranker((1.0,)), self.exam(-1))

    def test_a_handful_of_lists_proves_nothing(self):
        assert examine(Ranker((1.0,)), self.exam(-1, lists=5)).auc < 0.5

    def test_nothing_held_out(self):
        assert not examine(Ranker((1.0,)), self.exam(1, lists=0)).is_better

    def test_calibrated_probabilities(self):
        rng = np.random.default_rng(1)
        logits = torch.from_numpy(rng.normal(size=4000))
        labels = (torch.rand(4000, generator=torch.Generator().manual_seed(0)) < torch.sigmoid(2 * logits - 1)).float()
        ranker = Ranker((1.0,))
        ranker.calibrate(logits, labels)
        assert (ranker.slope.item(), ranker.offset.item()) == pytest.approx((2, -1), abs=0.2)


def test_a_swapped_ranking_run_is_refused(ranking_run, retrieval_run, monkeypatch):
    from dataclasses import replace

    from m6rec.tasks.ranking.scorer import RankingScorer

    popularity = np.bincount(open_experiment(retrieval_run).dataset.histories().items.clip(0), minlength=36)
    sign = [1]

    def score(self, pairs):
        return 1 / (1 + np.exp(-sign[0] * (popularity[pairs.items] - popularity.mean()))).astype(np.float32)

    monkeypatch.setattr(RankingScorer, "score_pairs", score)
    recipe = open_experiment(retrieval_run).recipe
    recipe = replace(recipe, dense=DenseConfig(ranker=str(ranking_run)))
    assert open_teachers(retrieval_run, recipe).report.auc > 0.5
    sign[0] = -1
    with pytest.raises(RunError, match="label order swapped"):
        open_teachers(retrieval_run, recipe)


def test_validation_lists_hold_nothing_taken(experiment, space):
    retriever = Retriever(experiment.task, experiment.backbone)
    judge = FusedJudge(space, experiment.task.material.train)
    queries = experiment.dataset.histories().queries("valid")
    lists, exam = validation_lists(retriever, judge, queries, depth=8)
    taken = retriever.taken.contain(queries.users.astype(np.int64), lists.ids[:, 1:])
    assert not taken.any()
    assert not (lists.ids[:, 1:] == lists.ids[:, :1]).any()
    np.testing.assert_allclose(
        exam.numbers[..., 0][lists.ids >= 0], exam.retrieved[lists.ids >= 0], rtol=1e-4, atol=1e-4
    )
