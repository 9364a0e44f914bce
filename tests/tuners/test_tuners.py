"""Every tuner on every family that it works on."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners import TUNERS
from m6rec.tuners.bitfit import BitFitTuner
from m6rec.tuners.ln_tuning import LNTuningTuner
from m6rec.tuners.lora import LoraConfig, LoraTuner
from m6rec.tuners.p_tuning import PTuningTuner
from m6rec.tuners.prefix import PrefixTuner
from m6rec.tuners.prompt import PromptConfig, PromptTuner
from m6rec.tuners.start import StartConfig
from m6rec.tuners.state import TrainedShare, trained_share
from tests.contracts.backbone_contract import TRUNK, plain_batch
from tests.contracts.tuner_contract import TunerContract, states

ALL = ["bert", "gpt2", "llama", "qwen3", "t5"]


class ChosenFamilies(TunerContract):
    """The whole contract on the families where the method meets something of its own; the rest follows below."""

    families: ClassVar[list[str]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "model_type" in metafunc.fixturenames:
            metafunc.parametrize("model_type", self.families)

    @pytest.fixture
    def backbone(self, tiny_backbone, model_type: str) -> Backbone:
        return tiny_backbone(model_type)


class TestNone(ChosenFamilies):
    name, trains, families = "none", False, ["bert"]


class TestFull(ChosenFamilies):
    name, freezes, families = "full", False, ["bert", "qwen3"]  # tied and untied heads


class TestLora(ChosenFamilies):
    name, settings, families = "lora", {"rank": 4}, ["bert", "gpt2", "t5"]  # transposed matrices, two stacks


class TestDora(ChosenFamilies):
    name, families = "lora", ["bert", "gpt2"]

    def tuner(self, **settings):
        return super().tuner(decomposed=True, **settings)


class TestIA3(ChosenFamilies):
    name, families = "ia3", ["bert", "gpt2"]


class TestPrompt(ChosenFamilies):
    name, identity, settings, families = "prompt", False, {"num_virtual_tokens": 5}, ["bert", "gpt2", "t5"]


class TestPTuning(ChosenFamilies):
    name, identity, settings, families = "p-tuning", False, {"num_virtual_tokens": 5}, ["bert"]


class TestPrefix(ChosenFamilies):
    name, identity, settings, families = "prefix", False, {"num_virtual_tokens": 5}, ["bert", "qwen3"]  # grouped heads


class TestLNTuning(ChosenFamilies):
    name, families = "ln-tuning", ["bert", "gpt2", "t5"]


class TestBitFit(ChosenFamilies):
    name, settings, families = "bitfit", {"targets": ()}, ["bert", "qwen3"]  # with and without biases of its own


REFUSED = {("prefix", "t5"), ("bitfit", "gpt2")}
NOT_THE_FROZEN_MODEL = {"prompt", "prefix", "p-tuning", "option", "option-adapter"}


@pytest.mark.parametrize("name", sorted(TUNERS))
@pytest.mark.parametrize("model_type", ALL)
def test_every_method_on_every_family(tiny_backbone, name: str, model_type: str) -> None:
    if (name, model_type) in REFUSED:
        pytest.skip("refused: tested below")
    backbone, batch = tiny_backbone(model_type), plain_batch(TRUNK, [20, 21])
    bare, tuner = states(backbone, batch), TUNERS.load(name)()
    tuned = tuner.attach(backbone)
    assert torch.allclose(states(tuned, batch), bare, atol=1e-5) == (name not in NOT_THE_FROZEN_MODEL)
    assert bool(tuner.parameters()) == (name != "none")
    assert torch.equal(states(tuner.detach(), batch), bare)


def test_prefix_refuses_t5_and_leaves_it_alone(tiny_backbone) -> None:
    backbone = tiny_backbone("t5")
    with pytest.raises(TunerError, match="use prompt, p-tuning, lora or ia3"):
        PrefixTuner().attach(backbone)
    LoraTuner().attach(backbone)


def test_bitfit_refuses_gpt2_and_leaves_it_alone(tiny_backbone) -> None:
    backbone = tiny_backbone("gpt2")
    with pytest.raises(TunerError, match="use ln-tuning or lora"):
        BitFitTuner().attach(backbone)
    LoraTuner().attach(backbone)


@pytest.mark.parametrize(("model_type", "count"), [("bert", 7), ("gpt2", 7), ("llama", 7), ("qwen3", 7), ("t5", 15)])
def test_ln_tuning_reaches_every_norm(tiny_backbone, model_type: str, count: int) -> None:
    backbone = tiny_backbone(model_type)
    tuner = LNTuningTuner()
    tuner.attach(backbone)
    assert sum(name.endswith("weight") for name in tuner.parameters()) == count


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(tiny_backbone) -> None:
    for stabilized, scale in ((False, 16 / 4), (True, 16 / 2)):
        backbone = tiny_backbone("bert")
        LoraTuner(LoraConfig(rank=4, rank_stabilized=stabilized)).attach(backbone)
        assert backbone.model.encoder.layer[0].attention.self.query.scaling == {"default": scale}


@pytest.mark.parametrize("tuner", [PromptTuner, PTuningTuner, PrefixTuner])
def test_virtual_tokens_take_their_share_of_the_positions(tiny_backbone, tuner) -> None:
    backbone = tiny_backbone("bert")
    assert tuner().attach(backbone).max_tokens == backbone.max_tokens - 16


@pytest.mark.parametrize(
    ("name", "count"), [("prompt", 0), ("prompt", 96), ("p-tuning", 0), ("prefix", 0), ("prefix", 96), ("option", 96)]
)
def test_virtual_tokens_that_leave_no_room_are_refused(tiny_backbone, name: str, count: int) -> None:
    backbone, kind = tiny_backbone("bert"), TUNERS.load(name)
    with pytest.raises(TunerError, match=f"num_virtual_tokens: got {count}, expected 1 to 95"):
        kind(kind.Config(num_virtual_tokens=count)).attach(backbone)
    LoraTuner().attach(backbone)


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


@pytest.mark.parametrize("first", sorted(TUNERS))
def test_a_second_tuner_is_refused_until_the_first_is_detached(tiny_backbone, first: str) -> None:
    backbone = tiny_backbone("bert")
    tuner = TUNERS.load(first)()
    tuned = tuner.attach(backbone)
    for second in ("none", "full", "lora", "prompt", "option"):
        for held in (backbone, tuned):
            with pytest.raises(TunerError, match="detach the other tuner first"):
                TUNERS.load(second)().attach(held)
    with pytest.raises(TunerError, match="attached to tiny-bert, expected one that is free"):
        tuner.attach(tiny_backbone("bert"))
    PromptTuner().attach(tuner.detach())


@pytest.mark.parametrize("name", ["lora", "prompt", "option", "option-adapter", "peterrec", "iak"])
def test_a_config_that_names_an_unknown_tuner_is_refused(tiny_backbone, tmp_path: Path, name: str) -> None:
    tuner = TUNERS.load(name)()
    tuner.attach(tiny_backbone("bert"))
    tuner.save(tmp_path)
    path = tmp_path / "adapter_config.json"
    card = json.loads(path.read_text())
    card |= {key: "LORRA" for key in ("peft_type", "m6rec_tuner") if key in card}
    path.write_text(json.dumps(card))
    with pytest.raises(TunerError, match="got 'LORRA'"):
        tuner.load(tmp_path)


def test_a_prompt_that_cannot_start_leaves_the_backbone_alone(tiny_backbone) -> None:
    backbone, tuner = tiny_backbone("bert"), PromptTuner(PromptConfig(start=StartConfig(text=" ")))
    with pytest.raises(TunerError, match="at least one word"):
        tuner.attach(backbone)
    assert not backbone.control.requires_grad
    with pytest.raises(TunerError, match="not attached"):
        tuner.detach()
    LoraTuner().attach(backbone)


def test_the_seed_decides_the_start(tiny_backbone) -> None:
    torch.manual_seed(1)
    noise = torch.rand(1)
    torch.manual_seed(1)
    batch = plain_batch(TRUNK)
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
