"""Cold items on the ranking task: held-out items reach nothing, phases know what they should, strangers are read."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from m6rec.api import load
from m6rec.assemble import Experiment, build, open_experiment, train_run
from m6rec.backbones.conditions import ConditionBackbone, given
from m6rec.coldstart.item_phases import METRICS, PHASES
from m6rec.coldstart.items import ColdItems, _conditions
from m6rec.compressors.quantize import _ranking
from m6rec.errors import ConfigError, DataError, RunError
from m6rec.recipe import Recipe, read_recipe
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.text.prompt import UserText
from tests.little_shop import SMALL


def recipe(shop: Path, tiny_folder: Path, out: Path, *words: str) -> Recipe:
    return read_recipe(
        "cold-items", [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL["cold-items"], *words]
    )


@pytest.fixture(scope="module")
def trained(shop: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    out = tmp_path_factory.mktemp("cold-items") / "run"
    words = ["training.lr=0.05", "training.evaluate_first=false", "training.evaluate_every=null"]
    return train_run(recipe(shop, tiny_folder, out, *words, "training.select_on=null"))[0], out


def task_of(experiment: Experiment) -> ColdItems:
    assert isinstance(experiment.task, ColdItems)
    return experiment.task


def test_nothing_of_a_held_out_item_is_learnt_from(trained) -> None:
    task = task_of(trained[0])
    divided = task.divided
    held = set(np.r_[divided.phases.items["valid"], divided.phases.items["test"]].tolist())
    learnt = {item for row in task.examples() for item in row["items"]}
    assert held
    assert not learnt & held
    for split in ("train", "valid", "test"):
        pairs = task.pairs(split)
        assert not set(pairs.history.items.tolist()) & held  # no tree shows an event with one
        assert (set(pairs.items.tolist()) <= held) == (split != "train")
        assert np.all(pairs.lengths <= np.diff(pairs.history.offsets)[pairs.users])
    assert torch.isnan(task.item_statistics[sorted(held), 1]).all()
    assert not torch.isnan(task.item_statistics[sorted(learnt), 1]).any()


def test_a_phase_knows_its_shots_and_nothing_else(trained) -> None:
    task = task_of(trained[0])
    items = task.divided.phases.items["test"]
    for number, phase in enumerate(PHASES):
        histories, judged = task.divided.known("test", phase)
        assert np.bincount(judged.items, minlength=36)[items].tolist() == [number] * len(items)
        shown = np.bincount(histories.items[histories.items >= 0], minlength=36)
        assert (shown[items] > 0).all() == (number > 0)
        assert not shown[task.divided.phases.items["valid"]].any()
        counted = task._counted(phase, "test").items(items)["positive_rate"]
        assert np.isnan(counted).all() == (number == 0)


def test_figures_of_every_phase(trained) -> None:
    experiment, _ = trained
    figures = experiment.task.measure(experiment.backbone, "test")
    rows = ("", "closed_form_")
    assert set(figures) == {f"{row}{metric}[{phase}]" for row in rows for metric in METRICS for phase in PHASES}
    assert all(0 <= value <= 1 for value in figures.values())
    cold = RankingScorer(experiment.task, experiment.backbone, "test").score_pairs(experiment.task.pairs("test"))
    assert experiment.task.divided.phases.judge("test", cold)["auc"] == pytest.approx(figures["auc[cold]"])
    few = experiment.task.measure(experiment.backbone, "test", at_most=10, seed=1)
    assert set(few) <= set(figures)
    assert experiment.task.measure(experiment.backbone, "train") is None


def test_the_condition_is_used_learnt_saved_and_found_again(trained, tiny_folder, tmp_path) -> None:
    experiment, out = trained
    opened = open_experiment(out)
    pairs = opened.task.pairs("test")
    scores = [RankingScorer(run.task, run.backbone, "test").score_pairs(pairs) for run in (experiment, opened)]
    assert np.array_equal(*scores)
    backbone = experiment.backbone
    assert isinstance(backbone, ConditionBackbone)
    assert backbone.hypernetwork.outer.weight.any()  # zero at the start
    task = task_of(opened)
    shuffled = task.vectors.flip(0)
    kept = task.vectors.clone()
    task.vectors.copy_(shuffled)
    assert not np.allclose(task.score_pairs(opened.backbone, pairs, "test"), scores[0], atol=1e-4)
    task.vectors.copy_(kept)


def test_untrained_it_is_the_ranking_task(shop, tiny_folder, tmp_path) -> None:
    conditioned = build(recipe(shop, tiny_folder, tmp_path / "a"))
    plain = build(recipe(shop, tiny_folder, tmp_path / "b", "tuner={name: none}"))
    pairs = conditioned.task.pairs("valid")
    scores = [run.task.score_pairs(run.backbone, pairs, "valid") for run in (conditioned, plain)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert len(plain.task.vectors) == 0


def test_requests_are_read_as_they_are_evaluated_and_strangers_by_their_text(trained) -> None:
    experiment, out = trained
    ranker, task, keys = load(out), task_of(experiment), experiment.dataset.items["key"][:]
    pairs = task.pairs("test").take(np.arange(5))
    pairs = replace(pairs, users=np.zeros_like(pairs.users), lengths=np.zeros_like(pairs.lengths))
    expected = task.score_pairs(experiment.backbone, pairs, "test")
    found = {item.id: item.score for item in ranker.rank("", [keys[item] for item in pairs.items])}
    np.testing.assert_allclose([found[keys[item]] for item in pairs.items], expected, atol=1e-5)
    # A stranger of the same words is read under the same condition.
    records = task.catalogue.records[:3]
    known = task._vectors_of(experiment.backbone, list(enumerate(records)))
    strange = task._vectors_of(experiment.backbone, [(None, record) for record in records])
    torch.testing.assert_close(known, strange)
    assert len(ranker.rank("red shirt", [{"title": "green chair", "id": "new"}, "g03"])) == 2


def test_many_candidates_are_ranked_as_few(trained) -> None:
    experiment, _ = trained
    task, backbone = task_of(experiment), experiment.backbone
    items = [(place, task.catalogue.record(place)) for place in range(11)]
    whole = task.rank(backbone, UserText(events=[]), items)
    alone = [task.rank(backbone, UserText(events=[]), [item])[0] for item in items]
    np.testing.assert_allclose(whole, alone, atol=1e-5)
    assert task.rank(backbone, UserText(events=[]), []).shape == (0,)


def test_an_item_without_text_is_read_under_no_condition(trained) -> None:
    experiment, _ = trained
    task, backbone = task_of(experiment), experiment.backbone
    silent = task.encode(backbone, ["", "red shirt"])
    assert not silent[0].any()
    assert silent[1].any()
    conditions = _conditions(silent, torch.tensor([[0, 1, -1]]))
    assert conditions.numbers.tolist() == [[-1, -1, 1, -1]]
    scores = task.rank(backbone, UserText(events=[]), [(None, {}), (None, {"title": "red shirt"})])
    bare = task.rank(given(backbone, _conditions(silent[:1], torch.tensor([[0]]))), UserText(events=[]), [(None, {})])
    assert scores[0] == pytest.approx(bare[0], abs=1e-6)


def test_without_phases_everything_is_learnt_from_and_the_log_s_split_evaluated(shop, tiny_folder, tmp_path) -> None:
    task = build(recipe(shop, tiny_folder, tmp_path, "task.phases=null")).task
    assert task.pairs("test").history.num_events > task.pairs("train").history.num_events
    assert task.measure(None, "test") is None


def test_a_graph_that_takes_no_condition_is_not_exported(trained) -> None:
    experiment, out = trained
    subject = SimpleNamespace(folder=out, recipe={}, task=experiment.task, backbone=experiment.backbone)
    with pytest.raises(RunError, match="reads candidates under conditions"):
        _ranking(subject)


def test_says_what_does_not_fit(shop, tiny_folder, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"tuner\.size: got 5, expected 32"):
        build(recipe(shop, tiny_folder, tmp_path, "tuner.size=5"))
    with pytest.raises(DataError, match="items with 65 judgements or more"):
        build(recipe(shop, tiny_folder, tmp_path, "task.phases.shots=20", "task.phases.min_queries=5"))
