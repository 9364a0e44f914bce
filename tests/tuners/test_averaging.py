"""Averaging adapters: the mean of what they have learnt, and only of adapters that fit each other."""

import copy
from pathlib import Path

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners import TUNERS
from m6rec.tuners.averaging import average_adapters
from m6rec.tuners.files import read_tensors
from m6rec.tuners.lora import LoraConfig, LoraTuner
from tests.contracts.tuner_contract import states, tree


def save(backbone: Backbone, folder: Path, seed: int, name: str = "option-adapter", **settings) -> Path:
    """Save an adapter whose every number is off its start."""
    kind = TUNERS.load(name)
    tuner = kind(kind.Config(**settings))
    tuner.attach(backbone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuner.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuner.save(folder)
    tuner.detach()
    return folder


@pytest.fixture
def backbone(tiny_backbone) -> Backbone:
    return tiny_backbone("bert")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(path)[0].items()
    }


@pytest.mark.parametrize("name", ["full", "lora", "p-tuning", "option-adapter", "iak"])
def test_it_is_the_weighted_mean_of_every_number(backbone, tmp_path: Path, name: str) -> None:
    before, weights = states(backbone, tree(backbone)), copy.deepcopy(backbone.state_dict())
    one, two = (save(backbone, tmp_path / str(seed), seed, name) for seed in (1, 2))
    average_adapters(backbone, [one, two], tmp_path / "mean", weights=[3.0, 1.0])
    left, right, mean = tensors(one), tensors(two), tensors(tmp_path / "mean")
    assert mean.keys() == left.keys()
    for key in mean:
        torch.testing.assert_close(mean[key], 0.75 * left[key] + 0.25 * right[key])
    assert torch.equal(states(backbone, tree(backbone)), before)
    assert all(torch.equal(weight, weights[key]) for key, weight in backbone.state_dict().items())
    average_adapters(backbone, [tmp_path / "mean", tmp_path / "mean"], tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [("lora", {}, "of method"), ("option-adapter", {"bottleneck": 5}, "other settings")],
)
def test_what_does_not_fit_is_refused(backbone, tmp_path: Path, name: str, settings, message: str) -> None:
    one, two = save(backbone, tmp_path / "1", 1), save(backbone, tmp_path / "2", 2, name, **settings)
    with pytest.raises(TunerError, match=message):
        average_adapters(backbone, [one, two], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    LoraTuner(LoraConfig()).attach(backbone)  # and the backbone is free again


def test_an_adapter_of_another_backbone_is_refused(tiny_backbone, backbone, tmp_path: Path) -> None:
    other = tiny_backbone("bert")
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1
    folders = [save(backbone, tmp_path / "1", 1), save(other, tmp_path / "2", 2)]
    with pytest.raises(TunerError, match="load the backbone that the adapter was trained on"):
        average_adapters(backbone, folders, tmp_path / "mean")


@pytest.mark.parametrize(("count", "weights"), [(1, None), (2, [1.0]), (2, [1.0, -1.0]), (2, [0.0, 0.0])])
def test_weights_that_make_no_average(backbone, tmp_path: Path, count: int, weights) -> None:
    folders = [save(backbone, tmp_path / str(seed), seed) for seed in range(count)]
    with pytest.raises(TunerError, match="expected"):
        average_adapters(backbone, folders, tmp_path / "mean", weights)
