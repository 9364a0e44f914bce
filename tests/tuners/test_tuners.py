"""Every tuner on every family that it works on."""

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.peft import LoraConfig, LoraTuner, PrefixTuner, PromptTuner, PTuningTuner
from m6rec.tuners.state import TrainedShare, trained_share
from tests.contracts.backbone_contract import TRUNK, plain_batch
from tests.contracts.tuner_contract import TunerContract, states

FAMILIES = ["bert", "gpt2", "qwen3", "t5"]  # Llama differs from Qwen3 in nothing that a tuner sees


class OnEveryFamily(TunerContract):
    @pytest.fixture(params=FAMILIES)
    def backbone(self, request, tiny_backbone) -> Backbone:
        return tiny_backbone(request.param)


class TestNone(OnEveryFamily):
    name, trains = "none", False


class TestFull(OnEveryFamily):
    name, freezes = "full", False


class TestLora(OnEveryFamily):
    name, settings = "lora", {"rank": 4}


class TestIA3(OnEveryFamily):
    name = "ia3"


class TestPrompt(OnEveryFamily):
    name, identity, settings = "prompt", False, {"num_virtual_tokens": 5}


class TestPTuning(OnEveryFamily):
    name, identity, settings = "p-tuning", False, {"num_virtual_tokens": 5}


class TestPrefix(TunerContract):
    name, identity, settings = "prefix", False, {"num_virtual_tokens": 5}

    @pytest.fixture(params=["bert", "gpt2", "llama", "qwen3"])
    def backbone(self, request, tiny_backbone) -> Backbone:
        return tiny_backbone(request.param)


def test_prefix_refuses_t5_and_leaves_it_alone(tiny_backbone) -> None:
    backbone = tiny_backbone("t5")
    with pytest.raises(TunerError, match="use prompt, p-tuning, lora or ia3"):
        PrefixTuner().attach(backbone)
    LoraTuner().attach(backbone)


@pytest.mark.parametrize("tuner", [PromptTuner, PTuningTuner, PrefixTuner])
def test_virtual_tokens_take_their_share_of_the_positions(tiny_backbone, tuner) -> None:
    backbone = tiny_backbone("bert")
    assert tuner().attach(backbone).max_tokens == backbone.max_tokens - 16


def test_lora_alpha_that_does_not_match_is_refused_though_the_shapes_agree(tiny_backbone, tmp_path) -> None:
    one, two = LoraTuner(), LoraTuner(LoraConfig(alpha=32.0))
    one.attach(tiny_backbone("bert"))
    one.save(tmp_path)
    two.attach(tiny_backbone("bert"))
    with pytest.raises(TunerError, match=r"lora_alpha: got 16\.0, expected 32"):
        two.load(tmp_path)


def test_lora_on_chosen_matrices(tiny_backbone) -> None:
    tuner = LoraTuner(LoraConfig(targets=("query",)))
    tuner.attach(tiny_backbone("bert"))
    assert {name.split(".")[-4] for name in tuner.parameters() if "lora" in name} == {"query"}
    everywhere = LoraTuner(LoraConfig(targets=("all-linear",)))
    everywhere.attach(tiny_backbone("bert"))
    assert len(everywhere.parameters()) == 3 * 6 * 2 + 1


def test_lora_on_matrices_that_are_not_there(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    with pytest.raises(TunerError, match="nowhere"):
        LoraTuner(LoraConfig(targets=("nowhere",))).attach(backbone)
    LoraTuner().attach(backbone)


def test_a_second_tuner_is_refused(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    LoraTuner().attach(backbone)
    with pytest.raises(TunerError, match="detach the other tuner first"):
        LoraTuner().attach(backbone)


def test_the_seed_decides_the_start(tiny_backbone) -> None:
    torch.manual_seed(1)
    noise = torch.rand(1)
    torch.manual_seed(1)
    batch = plain_batch(TRUNK)
    from m6rec.tuners.peft import PromptConfig

    one, two, three = (
        states(PromptTuner(PromptConfig(seed=seed)).attach(tiny_backbone("bert")), batch) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)
    assert torch.equal(torch.rand(1), noise)  # and the generator outside has not moved


def test_p_tuning_trains_the_rows_themselves_after_loading(tiny_backbone, tmp_path) -> None:
    tuner = PTuningTuner()
    tuner.attach(tiny_backbone("bert"))
    assert len(tuner.parameters()) == 1 + 1 + 6
    tuner.save(tmp_path)
    tuner.load(tmp_path)
    assert len(tuner.parameters()) == 1 + 1


def test_trained_share_in_words() -> None:
    assert str(TrainedShare(25, 1000)) == "25 of 1,000 parameters trained (2.50 %)"
    assert trained_share(torch.nn.Linear(3, 1)).percent == 100
