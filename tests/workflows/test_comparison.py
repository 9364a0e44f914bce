"""One run beside baselines: everybody answers the same questions, and learns from the same past."""

import json

import numpy as np
import pytest

from m6rec.assemble import build, open_experiment
from m6rec.baselines.popularity import Popularity
from m6rec.data.store import Dataset
from m6rec.errors import ConfigError, DataError, UnknownNameError
from m6rec.recipe import read_recipe
from m6rec.workflows import comparison
from m6rec.workflows.comparison import WorldOracle, compare_reranked, compare_run
from tests.little_shop import SMALL, prepare_shop, shop_events


@pytest.fixture(scope="module")
def retrieval(retrieval_run):
    return open_experiment(retrieval_run)


@pytest.fixture(scope="module")
def ranking(ranking_run):
    return open_experiment(ranking_run)


def test_everybody_answers_the_same_questions(retrieval):
    compared = compare_run(retrieval, "test", ["popularity", "itemknn", "markov"], trials=2)
    rows = compared.report.rows
    assert [row.name for row in rows] == ["ours", "popularity", "itemknn", "markov"]
    queries = retrieval.dataset.histories().queries("test")
    for row in rows:
        assert row.users.tolist() == queries.users.tolist()
        assert row.targets.tolist() == queries.targets.tolist()
    assert set(compared.tunings) <= {"popularity", "itemknn", "markov"}
    assert all(len(tuning.trials) == 2 for tuning in compared.tunings.values())
    assert compared.report.ceiling is None


def test_baselines_learn_from_training_events_alone(retrieval, monkeypatch):
    seen = []
    fit = Popularity.fit
    monkeypatch.setattr(Popularity, "fit", lambda self, train: (seen.append(train), fit(self, train))[1])
    compare_run(retrieval, "test", ["popularity"])
    assert seen
    assert all((train.splits == 0).all() for train in seen)


def test_the_answer_is_one_plain_object(retrieval):
    found = compare_run(retrieval, "valid", ["markov"]).to_dict(retrieval)
    again = json.loads(json.dumps(found))
    assert again["metrics"] == found["report"]["rows"]["ours"]["metrics"]
    assert again["recipe"]["task"]["name"] == "retrieval"
    assert again["protocol"]["split"]["rule"] == "leave-one-out"
    assert again["data"]["hash"] == retrieval.dataset.manifest.hash


def test_pairs(ranking):
    compared = compare_run(ranking, "test", ["rate"])
    assert [row.name for row in compared.report.rows] == ["ours", "rate"]
    pairs = ranking.task.pairs("test")
    for row in compared.report.rows:
        assert row.labels.tolist() == pairs.labels.tolist()
        assert 0 <= row.means()["auc"] <= 1
    json.dumps(compared.to_dict(ranking))


@pytest.mark.parametrize(("run", "wrong"), [("retrieval", "rate"), ("retrieval", "popularty"), ("ranking", "markov")])
def test_a_wrong_baseline_is_told_before_anything_is_evaluated(request, monkeypatch, run, wrong):
    for name in ("evaluate", "evaluate_pairs"):
        monkeypatch.setattr(comparison, name, lambda *_, **__: pytest.fail("evaluated first"))
    kind = UnknownNameError if wrong == "popularty" else ConfigError
    with pytest.raises(kind, match=wrong):
        compare_run(request.getfixturevalue(run), "test", ["popularity" if run == "retrieval" else "rate", wrong])


def test_nothing_held_out_is_a_clear_error(tiny_folder, tmp_path):
    data = prepare_shop(tmp_path, shop_events(12), split="ratio", split_shares=(1.0, 0.0, 0.0))
    for name in ("retrieval", "ranking"):
        words = [f"data={data}", f"out={tmp_path}", f"backbone.name={tiny_folder}", *SMALL[name]]
        experiment = build(read_recipe(name, words))
        experiment.task.refresh(experiment.backbone, 0)
        with pytest.raises(DataError, match="to evaluate"):
            compare_run(experiment, "test")


def test_a_split_without_validation_still_compares(tiny_folder, tmp_path):
    data = prepare_shop(tmp_path, shop_events(20), split="ratio", split_shares=(0.8, 0.0, 0.2))
    words = [f"data={data}", f"out={tmp_path}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]
    experiment = build(read_recipe("retrieval", words))
    experiment.task.refresh(experiment.backbone, 0)
    experiment.task.finish(experiment.backbone)
    compared = compare_run(experiment, "test", ["popularity", "itemknn", "markov"])
    assert len(compared.report.rows) == 4


class TestReranked:
    def test_both_orders_hold_the_same_items(self, retrieval, ranking):
        report = compare_reranked(retrieval, ranking, "test", depth=12)
        first, second = report.rows
        assert (first.name, second.name) == ("ours", "ours + ranker")
        for one, other in zip(first.lists, second.lists, strict=True):
            found = one[one >= 0].tolist()
            assert len(set(found)) == len(found) == 12
            assert sorted(found) == sorted(other[other >= 0].tolist())
        assert any((one != other).any() for one, other in zip(first.lists, second.lists, strict=True))
        deep = [name for name in first.means() if name.startswith("recall@20")]
        assert deep
        for name in deep:  # twelve items, in whatever order, hold the same targets
            assert first.means()[name] == pytest.approx(second.means()[name])

    def test_the_wrong_runs(self, retrieval, ranking):
        with pytest.raises(ConfigError, match="retrieval run and a ranking run"):
            compare_reranked(ranking, retrieval)


class TestOracle:
    @pytest.fixture(scope="class")
    def dataset(self, little_world):
        return Dataset.open(little_world)

    def test_it_knows_the_true_probabilities(self, dataset):
        queries = dataset.histories().queries("test")
        scores = WorldOracle.of(dataset).score(queries)
        assert scores.shape == (len(queries), 300)
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        assert (scores.sum(1) <= 1 + 1e-4).all()
        assert scores.sum(1).mean() > 0.5
        popularity = Popularity()
        popularity.fit(dataset.histories().before("train"))
        evaluate = comparison.evaluate
        assert evaluate(WorldOracle.of(dataset), queries).means()["ndcg@10"] > (
            1.5 * evaluate(popularity, queries).means()["ndcg@10"]
        )

    def test_no_other_dataset_has_one(self, shop):
        assert WorldOracle.of(Dataset.open(shop)) is None

    def test_it_is_the_ceiling_of_a_report(self, little_world, tiny_folder, tmp_path):
        words = [f"data={little_world}", f"out={tmp_path}", f"backbone.name={tiny_folder}", *SMALL["retrieval"]]
        experiment = build(read_recipe("retrieval", words))
        experiment.task.refresh(experiment.backbone, 0)
        experiment.task.finish(experiment.backbone)
        compared = compare_run(experiment, "test")
        assert compared.report.ceiling.name == "oracle"
        assert compared.report.ceiling.means()["ndcg@10"] > compared.report.rows[0].means()["ndcg@10"]
        assert "oracle" in json.dumps(compared.to_dict(experiment))
