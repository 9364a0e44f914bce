"""What a run folder keeps, and many runs opened on one backbone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from m6rec.assemble import open_experiment, open_run, open_runs, train_run
from m6rec.errors import RunError, SharedWeightsError
from m6rec.recipe import read_recipe
from m6rec.runs import kept_words, read_card, read_recipe_tree
from tests.little_shop import SMALL


@pytest.fixture
def ranking(shop, tiny_folder, tmp_path):
    """Train a small ranking run in ``tmp_path / "run"`` and return its folder."""

    def trained(*words):
        places = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}"]
        train_run(read_recipe("ranking", [*places, *SMALL["ranking"], *words]))
        return tmp_path / "run"

    return trained


class TestFiles:
    def test_a_card_and_a_recipe(self, ranking_run):
        assert read_card(ranking_run)["task"] == "ranking"
        assert read_recipe_tree(ranking_run)["task"]["name"] == "ranking"

    @pytest.mark.parametrize("text", ["- a list", "{", "\x00"])
    def test_a_damaged_recipe(self, tmp_path, text):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RunError, match="train again"):
            read_recipe_tree(tmp_path)

    @pytest.mark.parametrize("content", ["[]", "7", json.dumps({"format": 2})])
    def test_a_card_of_something_else(self, tmp_path, content):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(RunError, match=r"damaged|run format 2"):
            read_card(tmp_path)

    def test_words_that_are_not_kept_go_by_their_name(self, tmp_path):
        assert kept_words(tmp_path, "prompts", "ranking") == "ranking"
        (tmp_path / "templates" / "prompts").mkdir(parents=True)
        (tmp_path / "templates" / "prompts" / "mine.yaml").touch()
        kept = str(tmp_path / "templates" / "prompts" / "mine.yaml")
        assert kept_words(tmp_path, "prompts", "mine") == kept_words(tmp_path, "prompts", "/gone/mine.yaml") == kept


class TestWords:
    def test_a_run_keeps_the_words_that_it_was_trained_on(self, ranking, tmp_path, monkeypatch):
        words = tmp_path / "own" / "data_templates"
        words.mkdir(parents=True)
        (words / "goods.yaml").write_text("extends: default\nitem: 'the {{ title }} of mine'\n")
        monkeypatch.setenv("M6REC_TEMPLATES", str(tmp_path / "own"))
        ranking("domain=goods")
        record = {"title": "red shirt"}
        said = open_run(tmp_path / "run").renderer.item(record)
        assert "of mine" in said
        (words / "goods.yaml").write_text("extends: default\nitem: 'another {{ title }}'\n")
        assert open_run(tmp_path / "run").renderer.item(record) == said
        assert open_experiment(tmp_path / "run").renderer.item(record) == said
        shutil.rmtree(tmp_path / "own")
        run = open_run(tmp_path / "run")
        assert run.task.writer.prompt.path == tmp_path / "run" / "templates" / "prompts" / "ranking.yaml"
        assert run.recipe.task["prompt"] == "ranking"

    def test_a_run_without_them_reads_the_librarys(self, retrieval_run, tmp_path):
        copy = Path(shutil.copytree(retrieval_run, tmp_path / "copy"))
        shutil.rmtree(copy / "templates")
        assert open_run(copy).renderer.path.parent.name == "data_templates"


class TestOneBackboneForManyRuns:
    def test_runs_of_the_same_weights_share_them(self, retrieval_run, ranking_run):
        alone = [open_run(folder) for folder in (retrieval_run, ranking_run)]
        together = open_runs([retrieval_run, ranking_run])
        pointers = [{weight.data_ptr() for weight in run.backbone.model.parameters()} for run in together]
        assert pointers[0] < pointers[1]  # the ranker's own are its adapter's
        for one, other in zip(alone, together, strict=True):
            ours, theirs = one.backbone.state_dict(), other.backbone.state_dict()
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        assert not hasattr(together[0].backbone.model, "peft_config")

    def test_full_fine_tuning_has_weights_of_its_own(self, ranking, retrieval_run, tmp_path):
        ranking("tuner.name=full")
        base = open_run(retrieval_run).backbone
        with pytest.raises(SharedWeightsError, match="on a backbone of its own"):
            open_run(tmp_path / "run", base)
        runs = open_runs([retrieval_run, tmp_path / "run"], base)
        first, second = ({weight.data_ptr() for weight in run.backbone.model.parameters()} for run in runs)
        assert first == {weight.data_ptr() for weight in base.model.parameters()}
        assert not first & second

    def test_a_backbone_of_other_weights_is_refused_or_left_aside(self, tiny_backbone, ranking_run):
        other = tiny_backbone("bert")
        with pytest.raises(RunError, match="other weights"):
            open_run(ranking_run, other)
        (run,) = open_runs([ranking_run], other)
        assert run.backbone.fingerprint != other.fingerprint
