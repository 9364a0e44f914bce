"""Learning in scenes: which rows meet which part, what is paid, what is drawn; and that ranking's trees keep apart."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.api import load
from m6rec.assemble import Experiment, learnt, open_experiment, train_run
from m6rec.errors import BackboneError, ConfigError, DataError
from m6rec.recipe import Recipe, check_recipe, dump, read_recipe
from m6rec.tasks.ranking.scorer import RankingScorer
from m6rec.tasks.scenes import SceneTask, balanced_draw
from m6rec.tuners.iak import KernelBackbone
from tests.little_shop import SMALL

BY_GOODS = ("scenes.by=item.category", "scenes.names=[books, lamps]")


def iak(*words: str) -> tuple[str, ...]:
    return ("tuner={name: iak, bottleneck: 4}", *words)


def one_batch(experiment: Experiment) -> tuple[SceneTask, dict]:
    task = learnt(experiment)
    assert isinstance(task, SceneTask)
    examples = task.examples()
    return task, task.collate([examples[number] for number in range(6)])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 9))
def test_a_balanced_draw(sizes: list[int], seed: int) -> None:
    scenes = np.repeat(np.arange(len(sizes)), sizes)
    order = balanced_draw(scenes, [seed])
    assert len(order) == len(scenes)
    counts, roots = np.bincount(scenes[order], minlength=len(sizes)), np.sqrt(sizes)
    np.testing.assert_allclose(counts, len(scenes) * roots / roots.sum(), atol=1)
    times = np.bincount(order, minlength=len(scenes))
    for scene in range(len(sizes)):
        assert np.ptp(times[scenes == scene]) <= 1
    assert np.array_equal(order, balanced_draw(scenes, [seed]))


def test_trees_hold_one_scene_each(make: Callable[..., Experiment]) -> None:
    task = make("ranking", *BY_GOODS).task
    scenes, pairs = task.scenes(), task.pairs("train")
    assert set(scenes.tolist()) == {0, 1, 2}
    counts = np.zeros(3, dtype=np.int64)
    np.add.at(counts, scenes, [len(row["labels"]) for row in task.examples()])
    assert counts.tolist() == np.bincount(pairs.scenes).tolist()
    assert make("ranking").task.pairs("train").scenes is None


def test_rows_meet_their_own_scene_and_the_divergence_is_paid(make: Callable[..., Experiment]) -> None:
    experiment = make("ranking", *BY_GOODS, *iak("tuner.beta=0.01"))
    task, batch = one_batch(experiment)
    backbone = experiment.backbone
    assert isinstance(backbone, KernelBackbone)
    with torch.no_grad():
        experiment.task.head.weight.normal_()
        for bank in backbone.banks:
            bank.decoder.weight.normal_()
    inner, scenes = batch["inner"], batch["scenes"]
    expected = experiment.task.loss(backbone.activate(scenes), inner).value
    loss = task.eval().loss(backbone.eval(), batch)
    torch.testing.assert_close(loss.value, expected)
    assert loss.figures["penalty"] == 0
    assert not torch.isclose(task.loss(backbone, {**batch, "scenes": (scenes + 1) % 3}).value, expected)
    backbone.train()
    torch.manual_seed(0)
    paid = task.loss(backbone, batch)
    torch.manual_seed(0)
    free = experiment.task.loss(backbone.activate(scenes), inner)
    assert paid.figures["penalty"] > 0
    torch.testing.assert_close(paid.value, free.value + paid.figures["penalty"])


def test_without_scenes_the_one_kernel_pays_all_the_same(make: Callable[..., Experiment]) -> None:
    experiment = make("ranking", *iak())
    task, batch = one_batch(experiment)
    experiment.backbone.train()
    assert task.loss(experiment.backbone, batch).figures["penalty"] > 0
    assert learnt(plain := make("ranking")) is plain.task


def test_a_part_for_all_learns_in_scenes_too(make: Callable[..., Experiment]) -> None:
    for tuner in ("tuner={name: iak, scenes: [all]}", "tuner.name=lora"):
        experiment = make("ranking", *BY_GOODS, tuner)
        task, batch = one_batch(experiment)
        task.loss(experiment.backbone, batch).value.backward()


def test_balanced_epochs_draw_anew_and_say_so(
    make: Callable[..., Experiment], caplog: pytest.LogCaptureFixture
) -> None:
    experiment = make("ranking", *BY_GOODS, "scenes.sampling=sqrt", *iak())
    with caplog.at_level(logging.INFO):
        task = learnt(experiment)
    assert "books" in caplog.text
    first, whole = task.examples(), experiment.task.examples()
    assert len(first) == len(whole)
    assert np.bincount(task.scenes()).tolist() != np.bincount(experiment.task.scenes()).tolist()
    lengths = task.lengths()
    for number in range(len(first)):
        example, scene = first[number]
        assert (len(example["ids"]), example["scene"]) == (lengths[number], scene)
    before = [first[number][0]["ids"] for number in range(len(first))]
    task.refresh(experiment.backbone, 1)
    assert before != [row["ids"] for row, _ in task.examples()]
    task.refresh(experiment.backbone, 0)
    assert before == [row["ids"] for row, _ in task.examples()]


def awake(experiment: Experiment) -> RankingScorer:
    """Return a scorer of validation whose kernels differ by scene."""
    task, backbone = experiment.task, experiment.backbone.eval()
    with torch.no_grad():
        task.head.weight.normal_()
        for bank in backbone.banks:
            bank.decoder.weight.normal_()
    return RankingScorer(task, backbone, "valid")


def test_pairs_are_scored_in_their_scenes(make: Callable[..., Experiment]) -> None:
    scorer = awake(make("ranking", *BY_GOODS, *iak()))
    task, backbone = scorer.task, scorer.backbone
    pairs = task.pairs("valid").take(np.arange(12))
    scores = scorer.score_pairs(pairs)
    for number, scene in enumerate(pairs.scenes.tolist()):
        alone = task.score_pairs(backbone.activate(torch.tensor([scene])), pairs.take(np.array([number])), "valid")
        np.testing.assert_allclose(scores[number], alone[0], atol=1e-5)
    with pytest.raises(BackboneError, match="books, lamps, other"):
        task.score_pairs(backbone, pairs, "valid")


def test_candidates_are_scored_in_the_scene_of_the_moment(make: Callable[..., Experiment]) -> None:
    experiment = make("ranking", "scenes.by=time.daypart", *iak())
    scorer, queries = awake(experiment), experiment.dataset.histories().queries("valid").take(np.arange(3, 11))
    pairs = scorer.task.pairs("valid")
    pairs = pairs.take(np.flatnonzero(np.isin(pairs.users, queries.users)))
    assert pairs.users.tolist() == queries.users.tolist()
    assert len(set(pairs.scenes.tolist())) > 1
    found = scorer.score_candidates(queries, queries.targets[:, None])
    np.testing.assert_allclose(found[:, 0], scorer.score_pairs(pairs), atol=1e-5)


def test_candidates_may_all_be_of_the_rest(make: Callable[..., Experiment]) -> None:
    experiment = make("ranking", *BY_GOODS, *iak())
    scorer, queries = awake(experiment), experiment.dataset.histories().queries("valid").take(np.arange(3))
    chair = experiment.task.catalogue.find("red chair")
    assert np.isfinite(scorer.score_candidates(queries, np.full((3, 1), chair, dtype=np.int32))).all()


def test_scenes_that_stand_nowhere_are_refused_before_training(make: Callable[..., Experiment]) -> None:
    with pytest.raises(DataError, match="got no pair of the scenes bookz"):
        make("ranking", "scenes.by=item.category", "scenes.names=[bookz]", *iak())


def run(shop: Path, tiny_folder: Path, out: Path, *words: str) -> Experiment:
    places = [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}"]
    return train_run(read_recipe("ranking", [*places, *SMALL["ranking"], *words]))[0]


def test_a_run_in_scenes_trains_logs_and_opens_again(shop: Path, tiny_folder: Path, tmp_path: Path) -> None:
    words = (*BY_GOODS, "scenes.sampling=sqrt", *iak("training.log_every=1"))
    trained = run(shop, tiny_folder, tmp_path / "run", *words)
    records = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    assert all(record["figures"]["penalty"] > 0 for record in records if "figures" in record)
    opened = open_experiment(tmp_path / "run")
    assert opened.backbone.scenes == ("books", "lamps", "other")
    pairs = opened.task.pairs("test")
    scores = [RankingScorer(run.task, run.backbone, "test").score_pairs(pairs) for run in (trained, opened)]
    assert np.array_equal(*scores)
    assert_requests_are_ranked_in_their_scenes(tmp_path / "run", opened)


def assert_requests_are_ranked_in_their_scenes(folder: Path, opened: Experiment) -> None:
    """Check candidates of several scenes in one request against evaluation, for a user without events."""
    ranker, keys = load(folder), opened.dataset.items["key"][:]
    pairs = opened.task.pairs("valid").take(np.arange(6))
    pairs = replace(pairs, users=np.zeros_like(pairs.users), lengths=np.zeros_like(pairs.lengths))
    expected = RankingScorer(opened.task, opened.backbone, "valid").score_pairs(pairs)
    found = {item.id: item.score for item in ranker.rank("", [keys[item] for item in pairs.items])}
    assert len(set(pairs.scenes.tolist())) > 1
    np.testing.assert_allclose([found[keys[item]] for item in pairs.items], expected, atol=1e-5)


def test_two_stages_are_two_runs(shop: Path, tiny_folder: Path, tmp_path: Path) -> None:
    first = run(shop, tiny_folder, tmp_path / "one", *BY_GOODS, *iak("tuner.form=compression"))
    second = run(
        shop, tiny_folder, tmp_path / "two", *BY_GOODS, *iak("tuner.form=matching"), f"start={tmp_path / 'one'}"
    )
    for one, two in zip(first.backbone.banks, second.backbone.banks, strict=True):
        assert torch.equal(one.mean.weight, two.mean.weight)
        assert not torch.equal(one.decoder.weight, two.decoder.weight)


def test_scenes_in_a_recipe() -> None:
    def read(*words: str) -> Recipe:
        recipe = read_recipe("ranking", ["data=d", "out=o", *words])
        assert check_recipe(yaml.safe_load(dump(recipe))) == recipe
        return recipe

    assert read(*BY_GOODS, "tuner={name: iak}").tuner["scenes"] == ["books", "lamps", "other"]
    assert read("scenes.by=time.season", "tuner={name: iak}").tuner["scenes"][-1] == "other"
    assert read(*BY_GOODS, "tuner={name: iak, scenes: [all]}").tuner["scenes"] == ["all"]
    assert read("tuner={name: iak}").tuner["scenes"] is None
    for words in ((), BY_GOODS):
        with pytest.raises(ConfigError, match=r"tuner\.scenes: got a, b"):
            read(*words, "tuner={name: iak, scenes: [a, b]}")


def test_a_task_without_scenes_says_so(make: Callable[..., Experiment]) -> None:
    experiment = make("retrieval", *BY_GOODS)
    with pytest.raises(ConfigError, match="whose examples are of none"):
        learnt(experiment)
