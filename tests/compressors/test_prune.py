"""Zeros come by the ramp and stay, through averaging, saving and loading."""

import pytest
import torch

from m6rec.compressors.prune import PruneConfig, SparseTask, matrices, prune, sparsity_at
from m6rec.errors import ConfigError


def zeros(model) -> float:
    counts = [(int((weight == 0).sum()), weight.numel()) for weight in matrices(model)]
    return sum(count for count, _ in counts) / sum(size for _, size in counts)


def test_the_smallest_go_in_every_matrix(tiny_backbone):
    made, plain = tiny_backbone("bert"), tiny_backbone("bert")
    prune(made, 0.5)
    for weight, before in zip(matrices(made.model), matrices(plain.model), strict=True):
        gone = weight == 0
        assert float(gone.float().mean()) == pytest.approx(0.5, abs=0.05)
        assert before[gone].abs().max() <= before[~gone].abs().min()
        assert torch.equal(weight[~gone], before[~gone])


def test_the_ramp_rises_and_ends():
    found = [sparsity_at(batch, PruneConfig(sparsity=0.8, ramp=10)) for batch in range(13)]
    assert found == sorted(found)
    assert found[0] == 0
    assert found[10:] == [0.8] * 3


def test_it_prunes_as_it_trains_and_to_the_end(make, caplog):
    experiment = make("ranking", "tuner.name=full")
    task = SparseTask(experiment.task, PruneConfig(sparsity=0.6, ramp=4))
    batch = task.collate([task.examples()[0]])
    found = [task.loss(experiment.backbone, batch).figures["sparsity"] for _ in range(2)]
    assert zeros(experiment.backbone.model) == pytest.approx(found[-1], abs=0.05)
    task.finish(experiment.backbone)
    assert zeros(experiment.backbone.model) == pytest.approx(0.6, abs=0.01)
    assert "set ramp lower" in caplog.text


def test_a_resumed_ramp_goes_on(make):
    experiment = make("ranking", "tuner.name=full")
    first, second = (SparseTask(experiment.task, PruneConfig(ramp=8)) for _ in range(2))
    batch = first.collate([first.examples()[0]])
    for _ in range(3):
        first.loss(experiment.backbone, batch)
    second.load_state_dict(first.state_dict())
    again = second.loss(experiment.backbone, batch).figures["sparsity"]
    assert again == first.loss(experiment.backbone, batch).figures["sparsity"] > 0


@pytest.mark.parametrize("settings", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"ramp": 0}])
def test_out_of_range(settings):
    with pytest.raises(ConfigError, match="expected"):
        PruneConfig(**settings)
