import json

import numpy as np
import pytest
import torch

from m6rec.api import load
from m6rec.assemble import build, open_experiment, open_run, train_run
from m6rec.coldstart.modulation import Modulated
from m6rec.coldstart.traits import Attributes, LayerReader
from m6rec.data.store import Dataset
from m6rec.errors import DataError
from m6rec.recipe import read_recipe
from tests.little_shop import SMALL, prepare_shop, shop_events


def recipe(shop, tiny_folder, out, *words):
    small = [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL["cold-users"]]
    return read_recipe("cold-users", [*small, *words])


@pytest.fixture(scope="module")
def run(shop, tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cold") / "run"
    train_run(recipe(shop, tiny_folder, out, "training.num_epochs=2"))
    return out


def states(task):
    return {name: value.clone() for name, value in task.state_dict().items()}


class TestRun:
    def test_saved_is_loaded_is_restored(self, run):
        experiment, opened = open_experiment(run), open_run(run)
        for name, value in states(experiment.task).items():
            assert torch.equal(opened.task.state_dict()[name], value), name
        figures = experiment.task.measure(experiment.backbone, "test")
        kept = json.loads((run / "run.json").read_text())
        assert kept["task"] == "cold-users"
        assert {"within_user_auc[support=2]", "mse", "ndcg@10[support=0]"} <= set(figures)

    def test_it_never_ends_below_the_closed_form_on_validation(self, run, shop, tiny_folder, tmp_path):
        experiment = open_experiment(run)
        untrained = build(recipe(shop, tiny_folder, tmp_path / "new"))
        before = untrained.task.measure(untrained.backbone, "valid")["mse"]
        assert experiment.task.measure(experiment.backbone, "valid")["mse"] <= before + 1e-6

    def test_three_events_change_the_order_and_nothing_met_comes_back(self, run):
        recommender = load(run)
        keys = recommender.run.task.catalogue.keys
        liked = [{"item": keys[place], "value": 5} for place in (0, 1, 2)]
        hated = [{**event, "value": 1} for event in liked]
        found = recommender.recommend(history=liked, k=36)
        assert {each.id for each in found} == set(keys[3:])
        assert all(0 < each.score < 1 for each in found)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
        other = recommender.recommend(history=hated, k=36)
        assert [each.score for each in found] != [each.score for each in other]
        assert np.mean([each.score for each in found]) > np.mean([each.score for each in other])

    def test_requests_leave_no_trace(self, run):
        recommender = load(run)
        keys = recommender.run.task.catalogue.keys
        nobody = recommender.rank([], keys)
        recommender.rank([{"item": key, "value": 1} for key in keys[:9]], keys)
        assert recommender.rank([], keys) == nobody

    def test_served_is_evaluated(self, run):
        """A test user's support as a request gives the order that the evaluation saw."""
        experiment, recommender = open_experiment(run), load(run)
        task, keys = experiment.task, recommender.run.task.catalogue.keys
        users, size = task.users("test"), 2
        scores = task.predictions(experiment.backbone, "test", size)
        part = next(iter(task.config.protocol.supports(users, size)))
        query = task.config.protocol.queries(users)[0]
        history = [
            {"item": keys[users.items[n]], "value": float(users.values[n])} for n in range(part.start, part.stop)
        ]
        asked = [keys[item] for item in users.items[query]]
        ranked = {each.id: each.score for each in recommender.rank(history, asked)}
        order = np.argsort(-scores[: len(asked)], kind="stable")
        assert [ranked[asked[place]] for place in order] == sorted(ranked.values(), reverse=True)

    def test_strangers_searches_and_events_without_a_value(self, run):
        recommender = load(run)
        history = ["something never heard of", {"query": "lamp"}, {"item": {"title": "red lamp", "aisle": "nowhere"}}]
        found = recommender.rank(history, [{"title": "purple teapot", "maker": "a maker never seen"}, "g00"])
        assert len(found) == 2
        assert all(np.isfinite(each.score) for each in found)
        assert recommender.rank(history, []) == []

    def test_ten_thousand_events(self, run):
        recommender = load(run)
        keys = recommender.run.task.catalogue.keys
        found = recommender.rank([{"item": keys[n % 36], "value": 1 + n % 5} for n in range(10_000)], keys[:5])
        assert all(0 < each.score < 1 for each in found)


class TestLeaks:
    def poisoned(self, tmp_path, shop, tiny_folder, *words):
        """Return a task over the shop's log, and one over a log in which test users say the opposite."""
        first = build(recipe(shop, tiny_folder, tmp_path / "a", *words)).task
        names = Dataset.open(shop).users["key"]
        test = {names[int(user)] for user in first.users("test").users}
        events = shop_events()
        for event in events:
            if event["who"] in test and event["stars"] != "":
                event["stars"] = 6 - int(event["stars"])
        other = prepare_shop(tmp_path / "other", events)
        return first, build(recipe(other, tiny_folder, tmp_path / "b", *words)).task

    def test_what_test_users_say_touches_nothing_before_the_test(self, shop, tiny_folder, tmp_path):
        first, other = self.poisoned(tmp_path, shop, tiny_folder)
        assert first.users("test").users.tolist() == other.users("test").users.tolist()
        assert not np.array_equal(first.users("test").values, other.users("test").values)
        for name, value in states(first).items():
            assert torch.equal(other.state_dict()[name], value), name
        batches = [task.collate(list(task.examples()[:8])) for task in (first, other)]
        assert all(
            torch.equal(getattr(batches[0].support, name), getattr(batches[1].support, name))
            for name in ("places", "base", "taste", "values")
        )

    def test_a_search_never_sees_test_users(self, shop, tiny_folder, tmp_path):
        words = ["task.method=modulation", "task.modulation.structure=searched", "task.modulation.num_gates=[1,2]"]
        first, other = self.poisoned(tmp_path, shop, tiny_folder, *words)
        assert first.found == other.found
        assert first.found.losses


class TestModulation:
    @pytest.mark.parametrize("structure", ["film", "all", "random", "none"])
    @pytest.mark.parametrize("predictor", ["mlp", "ladder"])
    def test_every_structure_trains_and_loads(self, structure, predictor, shop, tiny_folder, tmp_path):
        words = ["task.method=modulation", f"task.modulation.structure={structure}", "training.max_steps=2"]
        train_run(recipe(shop, tiny_folder, tmp_path / "run", *words, f"task.modulation.predictor={predictor}"))
        recommender = load(tmp_path / "run")
        assert isinstance(recommender.run.task.predictor, Modulated)
        assert len(recommender.recommend([{"item": "g03", "value": 5}], k=4)) == 4

    def test_a_search_is_kept_and_found_again(self, shop, tiny_folder, tmp_path):
        words = ["task.method=modulation", "task.modulation.num_gates=[2]", "training.max_steps=2"]
        train_run(recipe(shop, tiny_folder, tmp_path / "run", *words))
        structure = load(tmp_path / "run").run.task.predictor.structure
        assert open_experiment(tmp_path / "run").task.predictor.structure == structure
        assert structure.size == 2


def test_too_few_events_say_so(shop, tiny_folder, tmp_path):
    with pytest.raises(DataError, match="judged items or more"):
        build(recipe(shop, tiny_folder, tmp_path / "run", "task.protocol.support=90"))


def test_all_labels_equal(tiny_folder, tmp_path):
    events = [{**event, "stars": 5 if event["stars"] else ""} for event in shop_events()]
    train_run(recipe(prepare_shop(tmp_path, events), tiny_folder, tmp_path / "run", "training.max_steps=2"))
    experiment = open_experiment(tmp_path / "run")
    figures = experiment.task.measure(experiment.backbone, "test")
    assert np.isnan(figures["within_user_auc"])
    assert figures["mse"] == pytest.approx(0, abs=1e-3)
    assert all(each.score > 0.5 for each in load(tmp_path / "run").recommend(["g01"], k=3))


def test_attributes_come_from_any_field():
    records = [{"category": "A|B", "year": 1999, "tags": ["x", "y"], "title": "no"}, {"category": "b", "price": 1.5}]
    names = Attributes.of(records, at_most=10).names
    assert set(names) == {"category=a", "category=b", "year=1999", "tags=x", "tags=y"}


def test_layers_are_those_of_the_walk(tiny_folder):
    from m6rec.backbones.resolve import resolve_backbone
    from m6rec.text.tokenize import TextTokenizer

    backbone = resolve_backbone(str(tiny_folder))
    texts = TextTokenizer(backbone.tokenizer).texts(["red lamp", "a long row of words about a chair"])
    found = LayerReader(2).read(backbone, texts)
    expected = LayerReader(2).encoder.encode(backbone, texts)
    assert torch.allclose(found[:, 1], expected, atol=1e-5)
    assert not torch.allclose(found[:, 0], expected, atol=1e-2)
    with pytest.raises(ValueError, match="expected at most"):
        LayerReader(99).read(backbone, texts)
