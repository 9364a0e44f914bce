"""Every recipe that ships runs two steps on the sample world, and answers."""

from importlib import resources

import numpy as np
import pytest
import yaml

from m6rec.api import load
from m6rec.assemble import open_experiment
from m6rec.recipe import read_recipe
from m6rec.workflows.comparison import compare_run
from m6rec.workflows.measurement import measure_run, measures_itself
from m6rec.workflows.stages import train

# edge has stages, distillation wants a teacher: tests/compressors and tests/test_distilling run them.
RECIPES = sorted(
    entry.name.removesuffix(".yaml")
    for entry in resources.files("m6rec.recipes").iterdir()
    if entry.name.endswith(".yaml") and entry.name not in ("edge.yaml", "distillation.yaml")
)
# Memory and speed alone: a tiny tokenizer makes long texts.
_RANKING = ["task.max_events=4", "task.max_branches=6", "training.batch_size=2"]
_PRETRAINING = ["task.row_tokens=96", "training.batch_size=2"]
_FLAT = ["task.max_events=4", "task.item_tokens=16", "training.batch_size=4"]
_TALKING = ["task.item_tokens=8", "training.batch_size=2"]
_WRITING = ["task.max_events=3", "task.max_branches=4", "training.batch_size=2", "task.decoding.max_new_tokens=6"]
SMALL = {
    **dict.fromkeys(("foundation", "pretrain", "pretrain-small"), _PRETRAINING),
    **dict.fromkeys(("explanation", "title", "query", "description"), _WRITING),
    "ranking": _RANKING,
    "cold-items": [*_RANKING, "task.phases.shots=1", "task.phases.min_queries=2"],
    "ranking-late": [*_RANKING, "late_interaction.layers=1"],
    "ranking-option": [*_RANKING, "tuner.budget=20%", "tuner.num_virtual_tokens=4"],  # of a tiny backbone
    "ranking-scenes": _RANKING,
    "zeroshot": ["task.max_events=3", "task.candidates=4"],
    "fewshot": ["task.max_events=3", "task.candidates=4", "task.shots=4", "training.batch_size=2"],
    **dict.fromkeys(("retrieval-flat", "retrieval-maxsim"), _FLAT),
    **dict.fromkeys(("conversation", "conversation-retrieval"), _TALKING),
}

# What an opened run is asked, by its task or, where that does many things, by its recipe.
ANSWERS = {
    "conversation": lambda recommender, titles: bool(recommender.chat([f"Something like {titles[0]}?"]).text),
    "conversation-retrieval": lambda recommender, titles: len(recommender.suggest([titles[0]], k=3)) == 3,
    "pretraining": lambda recommender, _: "[MASK]" not in recommender.generate("a red [MASK]", max_new_tokens=3).text,
    **dict.fromkeys(
        ("retrieval", "retrieval-maxsim"), lambda recommender, titles: len(recommender.recommend(titles[:2], k=3)) == 3
    ),
    "ranking": lambda recommender, titles: len(recommender.rank(titles[:2], titles)) == 3,
    "zeroshot": lambda recommender, titles: len(recommender.rank(titles[:2], titles)) == 3,
    "cold-items": lambda recommender, titles: len(recommender.rank(titles[:2], titles)) == 3,
    "cold-users": lambda recommender, titles: len(recommender.recommend(titles[:2], k=3)) == 3,
    "explanation": lambda recommender, titles: recommender.explain(titles[:2], titles[2]).item.title == titles[2],
    "title": lambda recommender, titles: set(recommender.create(titles, "title")[0].answers) == {"category", "title"},
    "query": lambda recommender, titles: len(recommender.create(titles, "query")) == 1,
    "description": lambda recommender, titles: len(recommender.create(titles, "description", item=titles[0])) == 1,
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_two_steps_and_answers(name, little_world, tiny_folder, tmp_path):
    words = [f"data={little_world}", f"out={tmp_path / 'run'}", f"backbone.name={tiny_folder}", "training.max_steps=2"]
    _, result = train(read_recipe(name, [*words, *SMALL.get(name, [])]))
    assert (result.stopped, result.steps) == ("finished", 0 if name == "zeroshot" else 2)  # which needs no training
    assert all(np.isfinite(record["loss"]) for record in result.history if "loss" in record)
    experiment = open_experiment(tmp_path / "run")
    if measures_itself(experiment.task):
        means = measure_run(experiment, "valid", at_most=4).figures
    else:
        means = compare_run(experiment, "valid").report.rows[0].means()
    assert all(np.isfinite(value) for value in means.values())
    recommender = load(tmp_path / "run")
    titles = [record["title"] for record in recommender.run.task.catalogue.records[:3]]
    assert ANSWERS[name if name in ANSWERS else experiment.task.name](recommender, titles)


@pytest.mark.parametrize("name", RECIPES)
def test_it_says_what_it_is_for(name):
    tree = yaml.safe_load(resources.files("m6rec.recipes").joinpath(f"{name}.yaml").read_text())
    assert len(tree["description"]) > 20
    assert tree["task"]["name"]
    assert not {"data", "out"} & set(tree)
