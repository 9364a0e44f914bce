import pytest
import torch
from torch import nn

from m6rec.errors import CheckpointError, ConfigError
from m6rec.training.config import TrainingConfig
from m6rec.training.optim import (
    WeightAverage,
    build_optimizer,
    copy_weights,
    load_optimizer_tensors,
    optimizer_tensors,
    rate,
    set_rate,
    trained_parameters,
)


@pytest.fixture
def backbone():
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))


@pytest.fixture
def task():
    return nn.ParameterDict({"head": nn.Parameter(torch.ones(2, 3)), "temperature": nn.Parameter(torch.tensor(0.1))})


def test_heads_have_their_own_rate_and_only_matrices_decay(task, backbone):
    optimizer = build_optimizer(task, backbone, TrainingConfig(lr=1e-3, head_lr=1e-2, weight_decay=0.1))
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    linear, norm = backbone
    assert settings == {
        id(linear.weight): (1e-3, 0.1),
        id(linear.bias): (1e-3, 0.0),
        id(norm.weight): (1e-3, 0.0),
        id(norm.bias): (1e-3, 0.0),
        id(task["head"]): (1e-2, 0.1),
        id(task["temperature"]): (1e-2, 0.0),
    }


def test_a_shared_parameter_is_stepped_once(task, backbone):
    task["tied"] = backbone[0].weight
    optimizer = build_optimizer(task, backbone, TrainingConfig(head_lr=1.0))
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == 6
    assert next(g["lr"] for g in optimizer.param_groups if any(p is task["tied"] for p in g["params"])) == 3e-4


def test_nothing_to_train_is_said():
    module = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        trained_parameters(module)


@pytest.mark.parametrize(("schedule", "middle", "end"), [("linear", 0.5, 0), ("cosine", 0.5, 0), ("constant", 1, 1)])
def test_schedule(schedule, middle, end):
    config = TrainingConfig(schedule=schedule, warmup=0.2)
    assert rate(0.1, config) == pytest.approx(0.5)
    assert rate(0.2, config) == pytest.approx(1.0)
    assert rate(0.6, config) == pytest.approx(middle)
    assert rate(1.0, config) == pytest.approx(end)
    assert rate(0.0, config) > 0


def test_no_warm_up_starts_at_the_peak():
    assert rate(0.0, TrainingConfig(warmup=0.0)) == pytest.approx(1.0)


def test_set_rate_keeps_the_ratio_of_groups(task, backbone):
    optimizer = build_optimizer(task, backbone, TrainingConfig(lr=1e-3, head_lr=1e-2))
    for share in (0.5, 0.25):
        set_rate(optimizer, share)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * share, 1e-2 * share}


def test_optimizer_state_goes_out_and_comes_back(task, backbone):
    def step(optimizer):
        loss = (task["head"] * backbone(torch.ones(3))).sum() / task["temperature"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    trained = trained_parameters(nn.ModuleList([backbone, task]))
    first = build_optimizer(task, backbone, TrainingConfig())
    step(first)
    weights = {name: p.detach().clone() for name, p in trained.items()}
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(first, trained).items()}
    step(first)
    expected = {name: p.detach().clone() for name, p in trained.items()}

    copy_weights(weights, trained)
    second = build_optimizer(task, backbone, TrainingConfig())
    load_optimizer_tensors(second, trained, tensors)
    step(second)
    assert all(torch.equal(p, expected[name]) for name, p in trained.items())
    with pytest.raises(CheckpointError, match="not trained now"):
        load_optimizer_tensors(second, {}, tensors)


def test_copy_weights_changes_nothing_unless_all_fits():
    trained = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"'b' has shape \(4,\), expected \(3,\)"):
        copy_weights({"a": torch.ones(2), "b": torch.ones(4)}, trained)
    with pytest.raises(CheckpointError, match="'c'"):
        copy_weights({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, trained)
    assert not trained["a"].any()


def test_average_forgets_the_start_and_is_only_lent():
    trained = {"w": nn.Parameter(torch.zeros(()))}
    average = WeightAverage(trained, decay=0.9)
    copy_weights({"w": torch.tensor(1.0)}, trained)
    average.update(step=1)
    assert average.tensors["w"].item() == pytest.approx(0.9)  # the first step keeps 1/10, not 9/10
    average.update(step=1000)
    assert average.tensors["w"].item() == pytest.approx(0.91)
    with average.applied():
        assert trained["w"].item() == pytest.approx(0.91)
    assert trained["w"].item() == 1.0
