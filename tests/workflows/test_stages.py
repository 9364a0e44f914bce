"""A recipe in stages: artefacts of each, and a run that goes on in the stage it was stopped in."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from m6rec import api
from m6rec.assemble import open_experiment, train_run
from m6rec.errors import ConfigError, RunError
from m6rec.recipe import read_recipe
from m6rec.workflows import stages
from tests.little_shop import SMALL

ROOT = Path(__file__).parents[2]
WORDS = ["dense.hard.depth=8", "dense.pseudo.share=0.5", "dense.guide=2", "training.num_epochs=1"]


@pytest.fixture(scope="module")
def recipe(shop, tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("stages") / "run"
    words = [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL["retrieval"], *WORDS]
    return read_recipe("rocketqa", words)


@pytest.fixture(scope="module")
def finished(recipe):
    """Return the folder of a finished run."""
    _, result = stages.train(recipe)
    assert result.stopped == "finished"
    return Path(recipe.out)


def weights(folder):
    return load_file(folder / "task" / "heads.safetensors")


def test_every_stage_leaves_what_it_made(finished):
    made = finished / "stages"
    assert {path.name for path in made.iterdir()} == {"1-retriever", "2-ranker", "3-lists", "4-denoised"}
    for stage in ("1-retriever", "4-denoised"):
        assert open_experiment(made / stage).task.name == "retrieval"
        exam = json.loads((made / "2-ranker" / f"{stage}.json").read_text())
        assert exam["lists"] > 0
        assert 0.5 < exam["auc"] <= 1
    assert (made / "3-lists" / "part-00000.safetensors").is_file()


def test_the_report_has_a_row_a_stage(finished):
    table = stages.report(finished)
    names = ["1-retriever", "2-ranker on 1-retriever", "2-ranker on 4-denoised", "3-lists", "4-denoised", "out"]
    assert list(table.columns[0].cells) == names
    assert "learnt score" in list(table.columns[3].cells)[-1]


def test_the_last_stage_is_a_run_like_any_other(finished):
    recommender = api.load(finished)
    titles = [record["title"] for record in recommender.run.task.catalogue.records[:2]]
    assert len(recommender.recommend(titles, k=3)) == 3


@pytest.mark.parametrize("stop", ["3-lists", "4-denoised", "out"])
def test_a_run_that_was_stopped_goes_on_in_that_stage(recipe, finished, tmp_path, monkeypatch, stop):
    cut, begun = replace(recipe, out=str(tmp_path / "run")), []

    def stops(name, run):
        begun.append(name)
        if name == stop:
            raise KeyboardInterrupt
        return stage(name, run)

    stage = stages._stage
    monkeypatch.setattr(stages, "_stage", stops)
    with pytest.raises(KeyboardInterrupt):
        stages.train(cut)
    monkeypatch.setattr(stages, "_stage", lambda name, run: (begun.append(name), stage(name, run))[1])
    begun.clear()
    stages.train(cut, resume=True)
    assert "1-retriever" not in begun
    assert ("4-denoised" in begun) == (stop != "out")
    expected, found = weights(finished), weights(tmp_path / "run")
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_nothing_is_mixed_with_what_is_there(recipe, finished):
    with pytest.raises(RunError, match="go on with --resume"):
        stages.train(recipe)
    before = (finished / "task" / "heads.safetensors").stat().st_mtime_ns
    stages.train(recipe, resume=True)
    assert (finished / "task" / "heads.safetensors").stat().st_mtime_ns >= before


def test_one_without_stages_trains_at_once(recipe, tmp_path):
    plain = replace(recipe, out=str(tmp_path / "plain"), dense=None)
    stages.train(plain)
    assert not (tmp_path / "plain" / "stages").exists()


def test_a_finished_retriever_can_be_the_teacher(recipe, retrieval_run, tmp_path):
    dense = replace(recipe.dense, teacher=str(retrieval_run), pseudo=replace(recipe.dense.pseudo, share=0.0))
    stages.train(replace(recipe, out=str(tmp_path / "run"), dense=dense))
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == {"2-ranker", "3-lists"}


def test_a_schedule_mines_on_the_way(recipe, retrieval_run, tmp_path):
    hard = replace(recipe.dense.hard, refresh_every=1)
    dense = replace(recipe.dense, teacher=str(retrieval_run), pseudo=replace(recipe.dense.pseudo, share=0.0), hard=hard)
    training = replace(recipe.training, num_epochs=3)
    stages.train(replace(recipe, out=str(tmp_path / "run"), dense=dense, training=training))
    assert {path.name for path in (tmp_path / "run").glob("lists-*")} == {"lists-1", "lists-2"}


def test_nobody_trains_it_without_its_lessons(recipe, tmp_path):
    with pytest.raises(ConfigError, match="taught in stages"):
        train_run(replace(recipe, out=str(tmp_path / "run")))


def test_mistakes(recipe, shop, tiny_folder, ranking_run, retrieval_run, tmp_path):
    out = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}"]
    with pytest.raises(ConfigError, match="teaches retrieval"):
        stages.train(read_recipe("ranking", [*out, *SMALL["ranking"], "dense.chunk=4"]))
    pieces = replace(recipe, training=replace(recipe.training, gradient_accumulation=2), out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="gradient_accumulation=1"):
        stages.train(pieces)
    dense = replace(recipe.dense, ranker=str(retrieval_run))
    with pytest.raises(RunError, match="expected a ranking run"):
        stages.open_teachers(retrieval_run, replace(recipe, dense=dense))


@pytest.mark.slow
def test_two_processes_make_one_staged_run(shop, tiny_folder, tmp_path):
    words = [f"data={shop}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", *SMALL["retrieval"], *WORDS]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    command = [*launch, str(ROOT / "scripts" / "train.py"), "rocketqa", *words, "dense.hard.shards=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {"1-retriever", "2-ranker", "3-lists", "4-denoised"} <= {p.name for p in (tmp_path / "run/stages").iterdir()}
    assert len(api.load(tmp_path / "run").recommend("red shirt", k=3)) == 3
