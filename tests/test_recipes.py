"""Every recipe that ships runs two steps on the sample world, and answers."""

from importlib import resources

import numpy as np
import pytest
import yaml

from m6rec.api import load
from m6rec.assemble import open_experiment
from m6rec.comparison import compare_run
from m6rec.recipe import read_recipe
from m6rec.stages import train

RECIPES = sorted(
    entry.name.removesuffix(".yaml")
    for entry in resources.files("m6rec.recipes").iterdir()
    if entry.name.endswith(".yaml")
)
# Memory and speed alone: a tiny tokenizer makes long texts.
_RANKING = ["task.max_events=4", "task.max_branches=6", "training.batch_size=2"]
SMALL = {
    "ranking": _RANKING,
    "ranking-option": [*_RANKING, "tuner.budget=20%", "tuner.num_virtual_tokens=4"],  # of a tiny backbone
    "ranking-scenes": _RANKING,
    "retrieval-flat": ["task.max_events=4", "task.item_tokens=16", "training.batch_size=4"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_two_steps_and_answers(name, little_world, tiny_folder, tmp_path):
    words = [f"data={little_world}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", "training.max_steps=2"]
    _, result = train(read_recipe(name, [*words, *SMALL.get(name, [])]))
    assert (result.stopped, result.steps) == ("finished", 2)
    assert all(np.isfinite(record["loss"]) for record in result.history if "loss" in record)
    experiment = open_experiment(tmp_path / "run")
    means = compare_run(experiment, "valid").report.rows[0].means()
    assert all(np.isfinite(value) for value in means.values())
    recommender = load(tmp_path / "run")
    titles = [record["title"] for record in recommender.run.task.catalogue.records[:3]]
    answer = recommender.rank if name.startswith("ranking") else recommender.recommend
    found = answer(titles[:2], titles) if name.startswith("ranking") else answer(titles[:2], k=3)
    assert len(found) == 3


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_what_it_is_for(name):
    tree = yaml.safe_load(resources.files("m6rec.recipes").joinpath(f"{name}.yaml").read_text())
    assert len(tree["description"]) > 20
    assert tree["task"]["name"]
    assert not {"data", "out"} & set(tree)
