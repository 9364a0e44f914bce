"""A miner opened from run folders makes the lists of the one it stands for, whoever runs it."""

import sys

import numpy as np
import pytest

from m6rec.errors import MissingExtraError, RunError
from m6rec.training.dense_config import HardConfig
from m6rec.workflows.mining import MinerPlan, MiningWorker, mine_on_ray


@pytest.fixture
def plan(retrieval_run, shop):
    return MinerPlan(str(retrieval_run), str(shop), None, HardConfig(depth=6))


def parts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_worker_makes_the_parts_that_it_is_given(plan, tmp_path, monkeypatch, shards):
    monkeypatch.setattr("m6rec.training.mining.WINDOWS_A_PART", 16)
    _, miner = plan.open(None)
    miner.mine(tmp_path / "here")
    hard = HardConfig(depth=6, shards=shards)
    worker = MiningWorker(MinerPlan(plan.run, plan.data, None, hard), str(tmp_path / "there"))
    worker({"id": np.array([1, 2])})
    made, wanted = parts(tmp_path / "there"), parts(tmp_path / "here")
    assert list(made) == ["part-00001.safetensors", "part-00002.safetensors"]
    assert all(wanted[name] == content for name, content in made.items())
    assert miner.lists(tmp_path / "there").missing() == [0, *range(3, len(wanted))]


@pytest.mark.slow
def test_ray_mines_the_same_lists(plan, tmp_path, ray_cluster):
    _, miner = plan.open(None)
    miner.mine(tmp_path / "here")
    mine_on_ray(plan, miner, tmp_path / "there", 2)
    assert parts(tmp_path / "there") == parts(tmp_path / "here") != {}


def test_ray_is_asked_for_only_when_something_is_missing(plan, tmp_path, monkeypatch):
    _, miner = plan.open(None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"m6rec\[ray\]"):
        mine_on_ray(plan, miner, tmp_path, 2)
    miner.mine(tmp_path)
    mine_on_ray(plan, miner, tmp_path, 2)


def test_what_cannot_mine(plan, ranking_run, retrieval_run, shop):
    with pytest.raises(RunError, match="holds the task 'ranking', expected a retrieval run"):
        MinerPlan(str(ranking_run), str(shop), None, HardConfig()).open(None)
    with pytest.raises(RunError, match=r"expected a ranking run as dense\.ranker"):
        MinerPlan(plan.run, plan.data, str(retrieval_run), HardConfig()).open(None)
