"""Late interaction as a setting of a recipe: trained in one pass, saved, opened, served from a cache."""

import shutil

import numpy as np
import pytest
import torch

from m6rec.api import load
from m6rec.assemble import build, open_experiment, open_run, train_run
from m6rec.errors import BackboneError, CacheError, ConfigError
from m6rec.late_interaction.backbone import FILE, LateBackbone
from m6rec.late_interaction.cache import CacheConfig, SegmentCache
from m6rec.late_interaction.scorer import LateScorer
from m6rec.recipe import read_recipe
from m6rec.runs import ADAPTER_FOLDER
from m6rec.tasks.ranking.scorer import RankingScorer
from tests.little_shop import SMALL


@pytest.fixture(scope="module", params=["token", "pooled"])
def trained(request, shop, tiny_folder, tmp_path_factory):
    """Train a small ranking run with late interaction; return its folder and what it gave on validation."""
    out = tmp_path_factory.mktemp("late") / request.param
    late = ["late_interaction.layers=2", f"late_interaction.granularity={request.param}", "training.lr=0.01"]
    words = [f"data={shop}", f"out={out}", f"backbone.name={tiny_folder}", *SMALL["ranking"], *late]
    experiment, _ = train_run(read_recipe("ranking", words))
    pairs = experiment.task.pairs("valid")
    return out, pairs, RankingScorer(experiment.task, experiment.backbone, "valid").score_pairs(pairs)


def test_the_table_is_trained_and_kept_beside_the_adapter(trained) -> None:
    folder, _, _ = trained
    assert (folder / ADAPTER_FOLDER / FILE).is_file()
    assert isinstance(backbone := open_experiment(folder).backbone, LateBackbone)
    assert backbone.segment_embedding.weight.any()


def test_opened_for_evaluation_it_scores_as_when_it_was_trained(trained) -> None:
    folder, pairs, scores = trained
    again = open_experiment(folder)
    found = RankingScorer(again.task, again.backbone, "valid").score_pairs(pairs)
    np.testing.assert_allclose(found, scores, atol=1e-5)


def test_served_it_scores_as_when_it_was_trained(trained) -> None:
    folder, pairs, scores = trained
    again = open_experiment(folder)
    scorer = LateScorer(again.backbone)
    found = RankingScorer(again.task, scorer, "valid").score_pairs(pairs)
    np.testing.assert_allclose(found, scores, atol=1e-5)
    assert scorer.cache.stats.hit_rate > 0.5  # goods and stubs come back


def test_a_recommender_ranks_through_the_cache(trained) -> None:
    folder, *_ = trained
    rec = load(folder)
    scorer = rec.ranker.backbone
    assert isinstance(scorer, LateScorer)
    first = rec.rank("red shirt; blue shoes", ["green book", "warm lamp"])
    asked = scorer.cache.stats.misses
    again = rec.rank("red shirt; blue shoes", ["green book", "warm lamp"])
    assert scorer.cache.stats.misses == asked
    assert [item.score for item in first] == [item.score for item in again]
    assert rec.rank("red shirt; blue shoes", []) == []


def test_a_recommender_takes_a_cache_on_disk(trained, tmp_path) -> None:
    scores = []
    for _ in range(2):
        scorer = (rec := load(trained[0])).ranker.backbone
        scorer.use(SegmentCache(scorer.version, CacheConfig(disk=str(tmp_path / "segments"))))
        scores.append([item.score for item in rec.rank("red shirt", ["green book", "warm lamp"])])
    assert scorer.cache.stats.misses == 0
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    with pytest.raises(CacheError, match="open one with the scorer's version"):
        scorer.use(SegmentCache("other weights"))


def test_a_history_of_one_event_and_of_2000(trained) -> None:
    rec = load(trained[0])
    long = [{"item": "red shirt"}] * 1990 + [{"item": "blue shoes"}] * 10
    recent = rec.rank(long[-6:], ["green book"])  # what the task shows of a history
    assert rec.rank(long, ["green book"])[0].score == pytest.approx(recent[0].score, abs=0.05)
    assert 0 < rec.rank("red shirt", ["green book"])[0].score < 1


def test_a_run_goes_on_from_another_ones_table(trained, shop, tiny_folder, tmp_path) -> None:
    folder, *_ = trained
    late = ["late_interaction.layers=2", f"late_interaction.granularity={folder.name}"]
    words = [f"data={shop}", f"out={tmp_path}", f"backbone.name={tiny_folder}", f"start={folder}"]
    experiment = build(read_recipe("ranking", [*words, *SMALL["ranking"], *late]))
    table = open_experiment(folder).backbone.segment_embedding.weight
    assert torch.equal(experiment.backbone.segment_embedding.weight, table)


def test_a_lost_table_is_told(trained, tmp_path) -> None:
    folder = shutil.copytree(trained[0], tmp_path / "run")
    (folder / ADAPTER_FOLDER / FILE).unlink()
    with pytest.raises(BackboneError, match="missing or damaged"):
        open_run(folder)


def test_exits_and_late_interaction_exclude_each_other() -> None:
    words = ["data=d", "out=o", "exits.policy=never", "late_interaction.layers=1"]
    with pytest.raises(ConfigError, match="expected one of them"):
        read_recipe("ranking", words)


def test_a_misspelt_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="granularity"):
        read_recipe("ranking", ["data=d", "out=o", "late_interaction.granularty=pooled"])
