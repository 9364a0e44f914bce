"""Every task over a model that is stored in bfloat16, as most on the Hub are; its heads stay float32 all the same."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from m6rec.api import load
from m6rec.assemble import train_run
from m6rec.recipe import read_recipe
from tests.little_shop import SMALL


@pytest.fixture(scope="module")
def half_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny BERT in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    BertModel.from_pretrained(tiny_folder, add_pooling_layer=False).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("ranking", ()),
        ("ranking", ("tuner={name: option}",)),
        ("retrieval", ("task.item_vectors=step", "tuner.name=lora", "training.max_steps=2")),
        ("retrieval-flat", ()),
    ],
)
def test_it_trains_and_answers_without_autocast(shop: Path, half_folder: Path, tmp_path: Path, recipe, words) -> None:
    places = [f"data={shop}", f"out={tmp_path}", f"backbone.name={half_folder}", "training.precision=fp32"]
    experiment, _ = train_run(read_recipe(recipe, [*places, *SMALL[recipe], *words]))
    assert next(experiment.backbone.model.parameters()).dtype == torch.bfloat16
    trained = [experiment.backbone.control, *experiment.task.parameters()]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    rec = load(tmp_path)
    found = rec.rank("red shirt", ["blue lamp"]) if recipe == "ranking" else rec.recommend("red shirt", 1)
    assert math.isfinite(found[0].score)
