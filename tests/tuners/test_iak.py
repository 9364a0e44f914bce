"""Kernels behind every layer: scenes side by side in one batch, the divergence, and the two stages."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.backbones.scenes import in_scenes
from m6rec.errors import BackboneError, ConfigError, TunerError
from m6rec.tuners.iak import IAKConfig, IAKTuner, KernelBackbone
from tests.contracts.backbone_contract import BLOCKS, BRANCHES, TRUNK, close, pad, plain_batch, stack, tree_batch
from tests.contracts.tuner_contract import TunerContract, states, train_step

SCENES = ("winter", "summer", "other")
BATCH = stack(tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch([7, 8, 9], [20, 21]), plain_batch([11, 12], [22]))


class TestIAK(TunerContract):
    name, settings = "iak", {"bottleneck": 5}

    @pytest.fixture(params=["bert", "gpt2", "t5"])
    def backbone(self, tiny_backbone, request: pytest.FixtureRequest) -> Backbone:
        return tiny_backbone(request.param)


def attached(backbone: Backbone, **settings: Any) -> tuple[IAKTuner, KernelBackbone]:
    """Return kernels that have learnt something different in every scene."""
    tuner = IAKTuner(IAKConfig(**{"scenes": SCENES, "bottleneck": 6, **settings}))
    tuned = tuner.attach(backbone)
    assert isinstance(tuned, KernelBackbone)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.banks.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return tuner, tuned


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
def test_a_batch_of_scenes_equals_its_rows_alone(tiny_backbone, model_type: str) -> None:
    _, tuned = attached(tiny_backbone(model_type))
    scenes = torch.tensor([2, 0, 1])
    together = states(tuned.activate(scenes), BATCH)
    for row, scene in enumerate(scenes.tolist()):
        alone = states(tuned.activate(torch.tensor([scene])), BATCH.take(torch.tensor([row])))
        close(together[row : row + 1], alone)
        other = states(tuned.activate(torch.tensor([(scene + 1) % 3])), BATCH.take(torch.tensor([row])))
        assert not torch.allclose(alone, other, atol=1e-2)


def test_training_one_scene_leaves_the_others_bit_equal(tiny_backbone) -> None:
    tuner, tuned = attached(tiny_backbone("bert"))
    before = copy.deepcopy(tuned.banks.state_dict())
    optimizer = torch.optim.SGD(tuner.parameters().values(), lr=0.5)
    active = tuned.train().activate(torch.tensor([1]))
    (active(BATCH).square().mean() + active.penalty()).backward()
    optimizer.step()
    for name, weight in tuned.banks.state_dict().items():
        assert torch.equal(weight[[0, 2]], before[name][[0, 2]])
        assert not torch.equal(weight[1], before[name][1])


def test_divergence_in_training_and_none_in_inference(tiny_backbone) -> None:
    _, tuned = attached(tiny_backbone("bert"), beta=0.5)
    scenes = torch.tensor([0, 1, 2])
    active = tuned.activate(scenes)
    assert torch.equal(states(active, BATCH), states(active, BATCH))
    assert active.penalty() == 0
    active = tuned.train().activate(scenes)
    assert not torch.allclose(active(BATCH), active(BATCH))
    assert active.divergence() > 0
    assert active.penalty() == 0.5 * active.divergence()
    active.penalty().backward()
    assert tuned.banks[0].mean.weight.grad.abs().max() > 0


def test_padding_has_no_say_in_the_divergence(tiny_backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    # No chance: the codes of a second layer depend on the draw of the first, and both batches would have their own.
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    _, tuned = attached(tiny_backbone("gpt2"))
    tuned.eval().banks.train()
    found = []
    for batch in (BATCH, pad(BATCH, 7)):
        active = tuned.activate(torch.tensor([0, 1, 2]))
        active(batch)
        found.append(active.divergence())
    torch.testing.assert_close(found[0], found[1])


def test_a_weight_of_the_divergence_presses_it_down(tiny_backbone) -> None:
    found = []
    for beta in (0.0, 1.0):
        tuner, tuned = attached(tiny_backbone("bert"), beta=beta)
        optimizer = torch.optim.Adam(tuner.parameters().values(), lr=0.05)
        torch.manual_seed(0)
        for _ in range(20):
            active = tuned.train().activate(torch.tensor([0, 1, 2]))
            (active(BATCH)[..., 0].square().mean() + active.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(active.divergence().item())
    assert found[1] < 0.5 * found[0]


def test_several_scenes_must_be_chosen_from(tiny_backbone) -> None:
    _, tuned = attached(tiny_backbone("bert"))
    with pytest.raises(BackboneError, match=r"expected one of winter, summer, other for each row"):
        tuned(BATCH)
    with pytest.raises(BackboneError, match=r"got scenes \[3\], expected 0 to 2"):
        tuned.activate(torch.tensor([0, 3, 1]))
    with pytest.raises(BackboneError, match="a batch of 3 rows in the scenes of 2"):
        tuned.activate(torch.tensor([0, 1]))(BATCH)


def test_a_backbone_of_one_scene_or_none_takes_rows_of_any(tiny_backbone) -> None:
    bare = tiny_backbone("bert")
    assert in_scenes(bare, torch.tensor([0, 5, 1])) is bare
    _, shared = attached(bare, scenes=None)
    close(states(in_scenes(shared, torch.tensor([0, 5, 1])), BATCH), states(shared, BATCH))


def test_scenes_are_part_of_what_is_saved(tiny_backbone, tmp_path: Path) -> None:
    tuner, tuned = attached(tiny_backbone("bert"))
    tuner.save(tmp_path)
    again, reloaded = attached(tiny_backbone("bert"), seed=5)
    again.load(tmp_path)
    scenes = torch.tensor([2, 1, 0])
    close(states(reloaded.activate(scenes), BATCH), states(tuned.activate(scenes), BATCH))
    swapped, _ = attached(tiny_backbone("bert"), scenes=("summer", "winter", "other"))
    with pytest.raises(TunerError, match="other settings"):
        swapped.load(tmp_path)


def test_matching_starts_from_what_compression_has_learnt(tiny_backbone, tmp_path: Path) -> None:
    first, compressing = attached(tiny_backbone("bert"), form="compression")
    first.save(tmp_path)
    second = IAKTuner(IAKConfig(scenes=SCENES, bottleneck=6, form="matching"))
    matching = second.attach(bare := tiny_backbone("bert"))
    with pytest.raises(TunerError, match="form=compression"):
        matching.train().activate(torch.tensor([0]))
    second.load(tmp_path)
    before = {name: weight.clone() for name, weight in matching.banks.named_parameters()}
    learnt = compressing.banks.state_dict()
    assert all(torch.equal(weight, learnt[name]) for name, weight in before.items() if "decoder" not in name)
    assert torch.equal(states(matching.eval().activate(torch.tensor([0])), BATCH), states(bare, BATCH))
    assert {name.split(".")[2] for name in second.parameters() if "banks" in name} == {"decoder"}
    active = matching.train().activate(torch.tensor([0, 1, 2]))
    assert active.penalty() == 0
    train_step(second, active, BATCH)
    for name, weight in matching.banks.named_parameters():
        assert torch.equal(weight, before[name]) == ("decoder" not in name)


def test_matching_goes_on_from_matching_and_not_from_another_size(tiny_backbone, tmp_path: Path) -> None:
    first, _ = attached(tiny_backbone("bert"), form="compression")
    first.save(tmp_path / "compressed")
    second, tuned = attached(tiny_backbone("bert"), form="matching")
    second.load(tmp_path / "compressed")
    train_step(second, tuned.train().activate(torch.tensor([0, 1, 2])), BATCH)
    second.save(tmp_path / "matched")
    third, reloaded = attached(tiny_backbone("bert"), form="matching")
    third.load(tmp_path / "matched")
    scenes = torch.tensor([0, 1, 2])
    close(states(reloaded.activate(scenes), BATCH), states(tuned.eval().activate(scenes), BATCH))
    narrow, _ = attached(tiny_backbone("bert"), form="matching", bottleneck=3)
    with pytest.raises(TunerError, match="bottleneck: got 6, expected 3"):
        narrow.load(tmp_path / "compressed")


@pytest.mark.parametrize("wrong", [{"bottleneck": 0}, {"beta": -1.0}, {"scenes": ()}, {"scenes": ("a", "a")}])
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        IAKConfig(**wrong)
