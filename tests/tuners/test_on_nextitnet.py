"""PeterRec as published: the tuners on dilated convolutions. The whole contract, on sequences instead of trees."""

from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.text.batch import TokenBatch
from m6rec.tuners.bottleneck import Parallel, Serial
from m6rec.tuners.peterrec import PeterRecConfig, PeterRecTuner
from tests.contracts import tuner_contract
from tests.contracts.backbone_contract import TRUNK, close, plain_batch, stack
from tests.contracts.tuner_contract import TunerContract, states, train_step

PLACEMENTS = ["2mp-serial", "1mp-serial", "parallel"]


def sequences(backbone: Backbone) -> TokenBatch:
    """Return two rows, control tokens among their ids."""
    begin, end = backbone.first_control, backbone.first_control + 3
    return stack(plain_batch(TRUNK, [end]), plain_batch([begin, 8, 9, begin + 1], [begin + 2, 21, end]))


class OnNextItNet(TunerContract):
    always: ClassVar[dict] = {}

    @pytest.fixture(autouse=True)
    def _no_trees(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tuner_contract, "tree", sequences)

    @pytest.fixture
    def backbone(self, tiny_backbone) -> Backbone:
        return tiny_backbone("nextitnet")

    def tuner(self, **settings):
        return super().tuner(**{**self.always, **settings})

    def test_batched_equals_single(self, backbone: Backbone) -> None:
        tuned = self.tuner().attach(backbone)
        rows = [plain_batch(TRUNK), plain_batch([7, 8], [20]), plain_batch([], [20, 21])]
        together = states(tuned, stack(*rows))
        for i, row in enumerate(rows):
            close(together[i : i + 1, : row.ids.shape[1]], states(tuned, row))

    def test_a_branch_in_a_tree_equals_trunk_and_branch_alone(self, backbone: Backbone) -> None:
        tuned = self.tuner().attach(backbone)
        close(states(tuned, plain_batch(TRUNK, [20, 21])), states(tuned, plain_batch([*TRUNK, 20, 21])))


class TestNone(OnNextItNet):
    name, trains = "none", False


class TestFull(OnNextItNet):
    name, freezes = "full", False


class TestLora(OnNextItNet):
    name, always, settings = "lora", {"targets": ("taps",)}, {"rank": 4}


class TestLNTuning(OnNextItNet):
    name = "ln-tuning"


class TestBitFit(OnNextItNet):
    name = "bitfit"


class TestSerialPatches(OnNextItNet):
    name, settings = "peterrec", {"placement": "1mp-serial"}


class TestParallelPatches(OnNextItNet):
    name, always, settings = "peterrec", {"placement": "parallel"}, {"bottleneck": 3}


@pytest.fixture
def backbone(tiny_backbone) -> Backbone:
    return tiny_backbone("nextitnet")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_patches_start_as_the_frozen_model_and_every_one_learns(backbone: Backbone, placement) -> None:
    before = states(backbone, sequences(backbone))
    tuner = PeterRecTuner(PeterRecConfig(placement=placement))
    tuned = tuner.attach(backbone)
    assert torch.equal(states(tuned, sequences(backbone)), before)
    train_step(tuner, tuned, sequences(backbone))
    ups = [parameter for name, parameter in tuner.parameters().items() if "up.weight" in name]
    assert all(parameter.any() for parameter in ups)
    assert len(ups) == {"2mp-serial": 2, "1mp-serial": 1, "parallel": 2}[placement] * backbone.num_layers


def test_the_serial_patches_stand_between_convolution_and_norm(backbone: Backbone) -> None:
    """PeterRec's figure 3 (b). A re-implementation returns the patch of the input and drops the convolution."""
    hidden, block = torch.randn(2, 7, 32), backbone.model.blocks[0]
    bare = block.first(hidden)
    PeterRecTuner().attach(backbone)
    first, second = block.first.taps, block.second.taps
    assert isinstance(first, Serial)
    assert isinstance(second, Serial)
    torch.nn.init.normal_(first.bottleneck.up.weight)
    inner = F.relu(block.first_norm(bare + first.bottleneck(bare)))
    close(block(hidden), hidden + F.relu(block.second_norm(block.second(inner))))
    assert not torch.allclose(block.first(hidden), first.bottleneck(hidden))


def test_a_parallel_patch_adds_to_the_convolution_and_has_no_skip_of_its_own(backbone: Backbone) -> None:
    """Figure 3 (d) as the authors' code has it returns ``x + patch(x)`` beside the convolution: another model."""
    hidden, block = torch.randn(2, 7, 32), backbone.model.blocks[0]
    bare, whole = block.second(hidden), block(hidden)
    PeterRecTuner(PeterRecConfig(placement="parallel")).attach(backbone)
    assert isinstance(block.second, Parallel)
    torch.testing.assert_close(block.second(hidden), bare)
    published = bare + hidden + block.second.bottleneck(hidden)
    off = (F.relu(block.second_norm(published)) - F.relu(block.second_norm(bare))).norm() / (whole - hidden).norm()
    assert off > 0.1


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_task_token_is_read_at_the_end(backbone: Backbone, placement) -> None:
    end = backbone.first_control + 3
    tuner = PeterRecTuner(PeterRecConfig(placement=placement))
    tuned = tuner.attach(backbone)
    train_step(tuner, tuned, sequences(backbone))
    last = states(tuned, plain_batch([7, 8, 9, end]))[0, -1]
    first = states(tuned, plain_batch([end, 7, 8, 9]))[0, 0]
    for column in range(3):
        ids = [7, 8, 9]
        ids[column] = 20
        assert not torch.allclose(states(tuned, plain_batch([*ids, end]))[0, -1], last)
        assert torch.equal(states(tuned, plain_batch([end, *ids]))[0, 0], first)
