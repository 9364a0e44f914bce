"""From words to a run folder and back: nothing is lost, nothing is mixed up, and every mistake says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from m6rec.assemble import (
    build,
    open_experiment,
    open_run,
    read_card,
    train_run,
)
from m6rec.errors import BackboneError, ConfigError, DataError, M6RecError, RunError, UnknownNameError
from m6rec.recipe import BackboneConfig, check_recipe, read_recipe
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.retrieval.data import RetrievalScorer
from m6rec.validation import validator
from tests.little_shop import SMALL, prepare_shop, shop_events


@pytest.fixture
def recipe(shop, tiny_folder, tmp_path):
    """Read a small recipe on the little shop; its run folder is ``tmp_path / "run"``."""

    def read(name="retrieval", *words):
        places = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}"]
        return read_recipe(name, [*places, *SMALL[name], *words])

    return read


def weights(experiment):
    parts = (experiment.task, experiment.backbone)
    return {f"{n}.{name}": value for n, part in enumerate(parts) for name, value in part.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


class TestRecipes:
    def test_a_recipe_is_resolved_whole(self, recipe):
        found = recipe("retrieval", "seed=7", "task.dim=24")
        assert found.training.seed == found.seed == 7
        assert found.task["name"] == "retrieval"
        assert (found.task["dim"], found.task["temperature"]) == (24, 0.07)
        assert found.tuner == {"name": "none"}
        assert recipe("ranking", "seed=7").tuner["seed"] == 7
        assert recipe("ranking", "seed=7", "tuner.seed=1").tuner["seed"] == 1
        assert isinstance(found.backbone, BackboneConfig)

    def test_a_resolved_recipe_reads_back_equal(self, recipe, tmp_path):
        from m6rec.config import plain

        for name in SMALL:
            found = recipe(name, "seed=3")
            path = tmp_path / f"{name}.yaml"
            path.write_text(yaml.safe_dump(plain(found)))
            assert read_recipe(path, []) == found

    def test_every_mistake_is_told_at_once_with_the_nearest_name(self):
        words = [
            "data=d",
            "out=o",
            "task.dimm=3",
            "tuner.name=lora",
            "tuner.rang=4",
            "training.learning_rat=1",
            "sed=1",
        ]
        with pytest.raises(ConfigError) as caught:
            read_recipe("retrieval", words)
        said = str(caught.value)
        for part in ("task.dimm", "did you mean dim?", "tuner.rang", "training.learning_rat", "'sed'", "mean seed?"):
            assert part in said

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["data=d"], "missing setting 'out'"),
            (["data=d", "out=o", "task.name=retreival"], "did you mean retrieval?"),
            (["data=d", "out=o", "tuner.name=lorra"], "did you mean lora?"),
            (["data=d", "out=o", "tuner={rank: 4}"], "missing setting 'tuner.name'"),
            (["data=d", "out=o", "task=ranking"], "task"),
            (["data=d", "out=o", "tuner=lora"], "tuner"),
            (["data=d", "out=o", "training.seed=3"], "seed"),
            (["data=d", "out=o", "task.temperature=-1"], "positive"),
            (["data=d", "out=o", "training.batch_size=0"], "batch_size"),
            (["data"], "key=value"),
        ],
    )
    def test_a_mistake_says_where(self, words, part):
        with pytest.raises(ConfigError, match=part):
            read_recipe("retrieval", words)

    def test_an_unknown_recipe_names_the_nearest(self):
        with pytest.raises(UnknownNameError, match="did you mean retrieval"):
            read_recipe("retreival", [])

    @pytest.mark.parametrize(("text", "part"), [("[1, 2]", "mapping"), ("a: [", "YAML"), (None, "no file")])
    def test_an_unreadable_recipe_file(self, tmp_path, text, part):
        path = tmp_path / "own.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=part):
            read_recipe(path, ["data=d", "out=o"])

    def test_a_recipe_without_a_task(self):
        with pytest.raises(ConfigError, match="task"):
            check_recipe({"data": "d", "out": "o"})


class TestTrainedRestoredLoaded:
    """The three ways to a run give the same numbers, bit for bit."""

    @pytest.mark.parametrize("words", [(), ("task.item_vectors=step", "tuner.name=lora", "training.max_steps=2")])
    def test_retrieval(self, recipe, words):
        experiment, result = train_run(recipe("retrieval", *words))
        assert result.stopped == "finished"
        queries = experiment.dataset.histories().queries("test")
        trained = RetrievalScorer(experiment.task, experiment.backbone).score(queries)
        restored = open_experiment(experiment.recipe.out)
        assert np.array_equal(RetrievalScorer(restored.task, restored.backbone).score(queries), trained)
        assert_same_weights(weights(restored), weights(experiment))
        run = open_run(experiment.recipe.out)
        assert_same_weights(weights(run), weights(experiment))
        spaces = [part.task.space() for part in (experiment, restored, run)]
        for space in spaces[1:]:
            assert torch.equal(space.vectors, spaces[0].vectors)
            assert (space.cooccurrence, space.text) == (spaces[0].cooccurrence, spaces[0].text)
            assert np.array_equal(space.links.weights, spaces[0].links.weights)

    def test_flat_retrieval(self, recipe):
        experiment, _ = train_run(recipe("retrieval-flat"))
        queries = experiment.dataset.histories().queries("test")
        trained = RetrievalScorer(experiment.task, experiment.backbone).score(queries)
        restored = open_experiment(experiment.recipe.out)
        assert np.array_equal(RetrievalScorer(restored.task, restored.backbone).score(queries), trained)

    def test_ranking(self, recipe):
        experiment, _ = train_run(recipe("ranking"))
        pairs = experiment.task.pairs("test")
        trained = RankingScorer(experiment.task, experiment.backbone, "test").score_pairs(pairs)
        restored = open_experiment(experiment.recipe.out)
        assert np.array_equal(RankingScorer(restored.task, restored.backbone, "test").score_pairs(pairs), trained)
        run = open_run(experiment.recipe.out)
        assert_same_weights(weights(run), weights(experiment))

    def test_the_card_says_what_was_trained(self, retrieval_run, ranking_run, shop, tiny_folder):
        card = read_card(ranking_run)
        assert (card["task"], card["tuner"], card["backbone"]["name"]) == ("ranking", "lora", str(tiny_folder))
        share = card["trained_parameters"]
        assert 0 < share["adapter"] < share["backbone"]
        assert share["heads"] > 0
        assert card["data"]["counts"]["users"] == 60
        assert read_card(retrieval_run)["trained_parameters"]["adapter"] == 0

    def test_a_run_does_not_need_its_dataset(self, recipe, shop, tmp_path):
        copied = shutil.copytree(shop, tmp_path / "data")
        experiment, _ = train_run(recipe("retrieval", f"data={copied}", "training.max_steps=1"))
        shutil.rmtree(copied)
        assert len(open_run(experiment.recipe.out).task.catalogue) == 36
        with pytest.raises(DataError, match="data"):
            open_experiment(experiment.recipe.out)

    def test_a_run_does_not_need_the_adapter_it_started_from(self, recipe, tmp_path):
        words = ("tuner={name: option, num_virtual_tokens: 3}", "training.max_steps=1")
        train_run(recipe("ranking", *words, f"out={tmp_path / 'first'}"))
        start = f"tuner.start.adapter={tmp_path / 'first' / 'adapter'}"
        experiment, _ = train_run(recipe("ranking", *words, start))
        shutil.rmtree(tmp_path / "first")
        assert_same_weights(weights(open_run(experiment.recipe.out)), weights(experiment))


class TestResume:
    @pytest.mark.parametrize("name", ["retrieval", "ranking"])
    def test_a_resumed_run_equals_an_uninterrupted_one(self, recipe, tmp_path, name, monkeypatch):
        from m6rec.training.run import Run

        words = ("training.num_epochs=2", "training.max_steps=4", "training.save_every=1", "training.batch_size=16")
        whole, _ = train_run(recipe(name, *words))
        shutil.move(tmp_path / "run", tmp_path / "whole")
        advance = Run.advance

        def interrupted_after_two(run, *arguments):
            advance(run, *arguments)
            run.interrupted = run.interrupted or run.state.step == 2

        with monkeypatch.context() as patched:
            patched.setattr(Run, "advance", interrupted_after_two)
            _, cut = train_run(recipe(name, *words))
        assert (cut.stopped, cut.steps) == ("interrupted", 2)
        with pytest.raises(RunError, match="resume"):
            open_run(tmp_path / "run")
        resumed, rest = train_run(recipe(name, *words), resume=True)
        assert (rest.stopped, rest.steps) == ("finished", 4)
        assert_same_weights(weights(resumed), weights(whole))

    def test_resuming_a_finished_run_changes_nothing(self, recipe, tmp_path):
        first, _ = train_run(recipe("retrieval", "training.max_steps=1"))
        again, result = train_run(recipe("retrieval", "training.max_steps=1"), resume=True)
        assert result.steps == 1
        assert_same_weights(weights(again), weights(first))
        assert open_run(tmp_path / "run").card["steps"] == 1

    def test_nothing_is_lost_when_training_starts_twice(self, recipe, tmp_path):
        train_run(recipe("retrieval", "training.max_steps=1"))
        card = (tmp_path / "run" / "run.json").read_text()
        for words in ((), ("task.dim=8",)):
            with pytest.raises(RunError, match="out"):
                train_run(recipe("retrieval", "training.max_steps=1", *words))
            assert (tmp_path / "run" / "run.json").read_text() == card
            open_run(tmp_path / "run")

    def test_an_unfinished_run_keeps_its_recipe(self, recipe, tmp_path):
        train_run(recipe("retrieval", "training.max_steps=1"))
        (tmp_path / "run" / "run.json").unlink()
        saved = (tmp_path / "run" / "recipe.yaml").read_text()
        with pytest.raises(RunError):
            train_run(recipe("retrieval", "training.max_steps=1", "task.dim=8"))
        with pytest.raises(RunError, match="another recipe"):
            train_run(recipe("retrieval", "training.max_steps=1", "task.dim=8"), resume=True)
        assert (tmp_path / "run" / "recipe.yaml").read_text() == saved
        train_run(recipe("retrieval", "training.max_steps=1"), resume=True)

    def test_a_mistake_leaves_no_run_folder(self, recipe, tmp_path):
        with pytest.raises(DataError):
            train_run(recipe("retrieval", f"data={tmp_path / 'nothing'}"))
        with pytest.raises(BackboneError):
            train_run(recipe("retrieval", f"backbone.name={tmp_path}"))
        assert not (tmp_path / "run").exists()


class TestBrokenRuns:
    @pytest.fixture
    def copy(self, retrieval_run, tmp_path):
        return Path(shutil.copytree(retrieval_run, tmp_path / "copy"))

    @pytest.mark.parametrize(
        ("missing", "part"),
        [
            ("task/heads.safetensors", "train again"),
            ("task/heads.json", "train again"),
            ("task/catalogue/items.parquet", "catalogue"),
            ("task/catalogue/vectors.safetensors", "catalogue"),
            ("task/links.safetensors", "train again"),
            ("recipe.yaml", "recipe.yaml"),
            ("run.json", "finish it with"),
        ],
    )
    @pytest.mark.parametrize("how", ["missing", "truncated"])
    def test_a_file(self, copy, missing, part, how):
        file = copy / missing
        if how == "missing":
            file.unlink()
        elif missing == "run.json":
            file.write_text(file.read_text()[:40])
            part = "damaged"
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            part = "train again|damaged"
        with pytest.raises(RunError, match=part):
            open_run(copy)
        if missing not in ("task/heads.json", "task/links.safetensors"):  # over its dataset these can be made anew
            with pytest.raises(RunError, match=part):
                open_experiment(copy)

    def test_no_adapter(self, ranking_run, tmp_path):
        copy = Path(shutil.copytree(ranking_run, tmp_path / "copy"))
        shutil.rmtree(copy / "adapter")
        with pytest.raises(M6RecError, match="adapter"):
            open_run(copy)

    def test_no_folder_and_an_empty_one(self, tmp_path):
        with pytest.raises(RunError, match="m6rec train retrieval"):
            open_run(tmp_path / "none")
        with pytest.raises(RunError, match=r"no run\.json"):
            open_run(tmp_path)

    def test_another_format(self, copy):
        card = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps({**card, "format": 99}))
        with pytest.raises(RunError, match="run format 99"):
            open_run(copy)

    def test_a_recipe_of_another_version(self, copy):
        tree = yaml.safe_load((copy / "recipe.yaml").read_text())
        tree["task"]["gone"] = 1
        (copy / "recipe.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(M6RecError, match=r"task\.gone"):
            open_run(copy)

    def test_other_base_weights(self, copy, tiny_folder, tmp_path):
        from safetensors.torch import load_file, save_file

        other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
        tensors = load_file(other / "model.safetensors")
        name = sorted(tensors)[0]
        save_file({**tensors, name: tensors[name] + 1}, other / "model.safetensors", {"format": "pt"})
        tree = yaml.safe_load((copy / "recipe.yaml").read_text())
        tree["backbone"]["name"] = str(other)
        (copy / "recipe.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(RunError, match="other weights"):
            open_run(copy)

    def test_another_dataset(self, copy, tmp_path):
        other = prepare_shop(tmp_path / "other", shop_events(num_users=20, seed=5))
        with pytest.raises(RunError, match="another dataset"):
            open_experiment(copy, str(other))


class TestBuild:
    @pytest.mark.parametrize("tuner", ["lora", "full", "prompt"])
    def test_a_tuner_that_would_train_nothing_is_refused(self, recipe, tuner):
        with pytest.raises(ConfigError, match="would train nothing"):
            build(recipe("retrieval", f"tuner.name={tuner}"))

    def test_cached_vectors_freeze_the_backbone_whole(self, recipe):
        experiment = build(recipe("retrieval"))
        assert not any(parameter.requires_grad for parameter in experiment.backbone.parameters())
        tuned = build(recipe("retrieval", "task.item_vectors=step", "tuner.name=lora"))
        assert any(parameter.requires_grad for parameter in tuned.backbone.parameters())

    def test_the_seed_decides_every_weight(self, recipe):
        one, same, other = (weights(build(recipe("ranking", f"seed={seed}"))) for seed in (1, 1, 2))
        assert_same_weights(one, same)
        assert any(not torch.equal(value, other[name]) for name, value in one.items() if "lora" in name)

    def test_validation_figures_carry_the_name_to_select_on(self, recipe):
        assert 0 <= held_out_figures(build_ready(recipe("retrieval")))["ndcg@10"] <= 1
        assert 0 <= held_out_figures(build(recipe("ranking")))["auc"] <= 1


def held_out_figures(experiment):
    return validator(experiment.task, experiment.backbone, experiment.dataset, seed=0)(0)


def build_ready(recipe):
    experiment = build(recipe)
    experiment.task.refresh(experiment.backbone, 0)
    return experiment
