"""Option tuning and option-adapter tuning: the answers are the prompt's last rows, and the softmax's weight."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.errors import ConfigError, TunerError
from m6rec.nn.options import Options
from m6rec.tuners.answers import AnswersConfig
from m6rec.tuners.option import OptionTuner
from m6rec.tuners.option_adapter import OptionAdapterConfig, OptionAdapterTuner
from m6rec.tuners.peterrec import PeterRecConfig
from m6rec.tuners.prompt import PromptConfig, PromptTuner
from m6rec.tuners.start import StartConfig
from m6rec.tuners.state import trained_share
from tests.contracts.backbone_contract import TRUNK, plain_batch
from tests.contracts.tuner_contract import TunerContract, states, train_step, tree

ADAPTER_ALONE = {"num_virtual_tokens": 0, "num_classes": 0}


class TestOption(TunerContract):
    name, identity, settings = "option", False, {"num_virtual_tokens": 5}

    @pytest.fixture(params=["bert", "gpt2", "t5"])
    def backbone(self, tiny_backbone, request: pytest.FixtureRequest) -> Backbone:
        return tiny_backbone(request.param)


class TestOptionAdapter(TunerContract):
    name, identity, settings = "option-adapter", False, {"bottleneck": 5}

    @pytest.fixture(params=["bert", "gpt2", "qwen3", "t5"])
    def backbone(self, tiny_backbone, request: pytest.FixtureRequest) -> Backbone:
        return tiny_backbone(request.param)


class TestAdapterAlone(TunerContract):
    name, settings = "option-adapter", {**ADAPTER_ALONE, "bottleneck": 5}

    def tuner(self, **settings):
        return super().tuner(**{**ADAPTER_ALONE, **settings})

    @pytest.fixture
    def backbone(self, tiny_backbone) -> Backbone:
        return tiny_backbone("bert")


@pytest.mark.parametrize("kind", [OptionTuner, OptionAdapterTuner])
class TestTheAnswers:
    def test_are_the_last_rows_of_the_prompt_in_the_same_memory(self, tiny_backbone, kind) -> None:
        tuner = kind(kind.Config(num_virtual_tokens=6, num_classes=3))
        tuned = tuner.attach(tiny_backbone("bert"))
        rows = tuned.options(3).rows
        with torch.no_grad():
            tuned.prompt_encoder.weight += torch.randn(6, 32)
        prompt = tuned.rows(tuned.extend(plain_batch(TRUNK)).ids)[0, :6]
        assert torch.equal(prompt[-3:], rows)
        assert rows.untyped_storage().data_ptr() == tuned.prompt_encoder.weight.untyped_storage().data_ptr()
        assert sum(parameter.numel() == 6 * 32 for parameter in tuner.parameters().values()) == 1

    def test_learn_from_both_of_their_places(self, tiny_backbone, kind) -> None:
        tuned = kind(kind.Config(num_virtual_tokens=6, num_classes=2)).attach(tiny_backbone("bert"))
        weight, hidden = tuned.prompt_encoder.weight, torch.randn(5, 32)
        (as_weight,) = torch.autograd.grad(F.cross_entropy(tuned.options(2)(hidden), torch.ones(5).long()), weight)
        (as_prompt,) = torch.autograd.grad(tuned(plain_batch(TRUNK)).pow(2).sum(), weight)
        loss = F.cross_entropy(tuned.options(2)(hidden), torch.ones(5).long()) + tuned(plain_batch(TRUNK)).pow(2).sum()
        (both,) = torch.autograd.grad(loss, weight)
        assert not as_weight[:4].any()
        assert as_weight[4:].any(1).all()
        assert as_prompt.any(1).all()
        torch.testing.assert_close(both, as_weight + as_prompt)

    def test_start_even(self, tiny_backbone, kind) -> None:
        tuned = kind(kind.Config(num_classes=3)).attach(tiny_backbone("bert"))
        logits = tuned.options(3)(torch.randn(4, 32))
        assert torch.equal(logits[:, :1].expand(-1, 3), logits)

    def test_may_start_at_words(self, tiny_backbone, kind) -> None:
        backbone = tiny_backbone("bert")
        tuned = kind(kind.Config(answers=("the red lamp", "blue"))).attach(backbone)
        ids = backbone.tokenizer("the red lamp blue", add_special_tokens=False)["input_ids"]
        words = backbone.rows(torch.tensor([ids]))[0]
        torch.testing.assert_close(tuned.options(2).rows, torch.stack([words[:3].mean(0), words[3]]))

    def test_another_number_of_classes_is_refused(self, tiny_backbone, kind) -> None:
        tuned = kind().attach(tiny_backbone("bert"))
        with pytest.raises(TunerError, match=r"with 3 classes over a tuner with 2 answers; set tuner\.num_classes=3"):
            tuned.options(3)

    def test_without_classes_the_rows_are_a_prompt_only(self, tiny_backbone, kind) -> None:
        tuned = kind(kind.Config(num_classes=0)).attach(tiny_backbone("bert"))
        assert tuned.options(2) is None
        assert tuned.max_tokens == 96 - 16


def test_a_bare_backbone_and_another_tuner_have_no_options(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    assert backbone.options(2) is None
    assert PromptTuner().attach(backbone).options(2) is None


@pytest.mark.parametrize("similarity", ["dot", "scaled", "cosine"])
def test_similarities(similarity) -> None:
    rows, states = torch.randn(3, 8), torch.randn(5, 8)
    divisor = {"dot": 1.0, "scaled": 8**0.5, "cosine": states.norm(dim=1)[:, None] * rows.norm(dim=1)}[similarity]
    torch.testing.assert_close(Options(rows, similarity, 0.25)(states), states @ rows.T / divisor / 0.25)


def test_cosines_keep_their_precision_under_autocast() -> None:
    rows, states = torch.randn(3, 64), torch.randn(5, 64)
    expected = Options(rows, "cosine")(states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(Options(rows, "cosine")(states), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 17}, "expected 0 to num_virtual_tokens"),
        ({"answers": ("no",)}, "expected 2; give one a class"),
        ({"temperature": 0.0}, "expected more than 0"),
        ({"answers": ("no", "yes"), "start": StartConfig(adapter="x")}, "remove one of them"),
    ],
)
def test_settings_that_cannot_be(settings, message) -> None:
    for config in (AnswersConfig, OptionAdapterConfig):
        with pytest.raises(ConfigError, match=message):
            config(**settings)


@pytest.mark.parametrize("config", [OptionAdapterConfig, PeterRecConfig])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 0}, "bottleneck: got 0, expected 1 or more"),
        ({"budget": 1.0}, "budget: got 1, expected a share of the parameters, such as 1%"),
        ({"budget": 0.0}, "budget: got 0"),
    ],
)
def test_widths_that_cannot_be(config, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


class TestTheAdapter:
    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
    def test_is_the_formula_of_the_paper(self, tiny_backbone, model_type: str) -> None:
        backbone = tiny_backbone(model_type)
        span = backbone.sites()[-1].spans[0]
        tuner = OptionAdapterTuner(OptionAdapterConfig(**ADAPTER_ALONE, bottleneck=4))
        hidden, model = torch.randn(2, 3, 32), backbone.model
        bare = model.get_submodule(span.last)(model.get_submodule(span.first)(hidden)) if model_type == "bert" else None
        bare = model.get_submodule(span.first)(hidden) if bare is None else bare
        tuner.attach(backbone)
        first, last = (model.get_submodule(path) for path in (span.first, span.last))
        for parameter in first.bottleneck.parameters():
            torch.nn.init.normal_(parameter)
        patch = first.bottleneck
        units = F.relu(hidden @ patch.down.weight.T + patch.down.bias)
        expected = bare + patch.gate * (units @ patch.up.weight.T + patch.up.bias)
        found = last(first(hidden)) if model_type == "bert" else first(hidden)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_adds_nothing_to_option_tuning_at_the_start(self, tiny_backbone) -> None:
        option = states(OptionTuner().attach(tiny_backbone("bert")), tree(tiny_backbone("bert")))
        tuned = OptionAdapterTuner().attach(tiny_backbone("bert"))
        torch.testing.assert_close(states(tuned, tree(tiny_backbone("bert"))), option)

    def test_a_budget_chooses_the_bottleneck(self, tiny_backbone, tmp_path: Path) -> None:
        backbone = tiny_backbone("t5")
        total = sum(parameter.numel() for parameter in backbone.parameters())
        tuner = OptionAdapterTuner(OptionAdapterConfig(num_virtual_tokens=2, budget=0.1))
        share = trained_share(tuner.attach(backbone))
        one_unit = 5 * (2 * 32 + 1)
        assert 0.1 * total - one_unit < share.trained <= 0.1 * total
        tuner.save(tmp_path)
        same = OptionAdapterTuner(OptionAdapterConfig(num_virtual_tokens=2, bottleneck=tuner.chosen["bottleneck"]))
        same.attach(tiny_backbone("t5"))
        same.load(tmp_path)

    def test_a_budget_for_nothing_is_refused(self, tiny_backbone) -> None:
        backbone = tiny_backbone("bert")
        with pytest.raises(TunerError, match=r"got a budget of 1 % of tiny-bert, expected at least \d"):
            OptionAdapterTuner(OptionAdapterConfig(budget=0.01)).attach(backbone)
        OptionAdapterTuner().attach(backbone)  # and the backbone is free again


def test_a_backbone_stored_in_bfloat16_is_tuned_in_float32(tiny_backbone) -> None:
    whole = tiny_backbone("qwen3")
    backbone = type(whole)(whole.model.to(torch.bfloat16), whole.tokenizer, whole.name)
    tuner = OptionAdapterTuner()
    tuned = tuner.attach(backbone)
    assert {parameter.dtype for parameter in tuner.parameters().values()} == {torch.float32}
    before = states(tuned, tree(backbone))
    train_step(tuner, tuned, tree(backbone))
    assert states(tuned, tree(backbone)).isfinite().all()
    assert not torch.equal(before, states(tuned, tree(backbone)))


class TestStart:
    def test_at_a_text(self, tiny_backbone) -> None:
        backbone = tiny_backbone("bert")
        ids = backbone.tokenizer("warm winter shirt", add_special_tokens=False)["input_ids"]
        words = backbone.rows(torch.tensor([ids]))[0]
        start = StartConfig(text="warm winter shirt")
        for tuner in (
            OptionTuner(AnswersConfig(num_virtual_tokens=5, num_classes=0, start=start)),
            PromptTuner(PromptConfig(num_virtual_tokens=5, start=start)),
        ):
            assert torch.equal(tuner.attach(backbone).prompt(), words[[0, 1, 2, 0, 1]])
            tuner.detach()

    def test_at_a_text_without_words(self, tiny_backbone) -> None:
        with pytest.raises(TunerError, match="at least one word"):
            OptionTuner(AnswersConfig(start=StartConfig(text=" "))).attach(tiny_backbone("bert"))

    def test_at_both_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="expected one of them"):
            StartConfig(text="a", adapter="b")

    @pytest.mark.parametrize("source", [PromptTuner, OptionTuner, OptionAdapterTuner])
    @pytest.mark.parametrize("target", [PromptTuner, OptionTuner, OptionAdapterTuner])
    def test_at_another_adapter(self, tiny_backbone, tmp_path: Path, source, target) -> None:
        backbone = tiny_backbone("bert")
        tuner = source()
        tuned = tuner.attach(backbone)
        train_step(tuner, tuned, tree(backbone))
        tuner.save(tmp_path)
        rows = tuned.prompt().detach().clone()
        tuner.detach()
        new = target(target.Config(start=StartConfig(adapter=str(tmp_path))))
        assert torch.equal(new.attach(backbone).prompt(), rows)
        new.save(tmp_path / "new")
        assert str(tmp_path) not in "".join(
            path.read_bytes().decode("latin-1") for path in (tmp_path / "new").glob("*")
        )

    def test_at_an_adapter_that_does_not_fit(self, tiny_backbone, tmp_path: Path) -> None:
        backbone = tiny_backbone("bert")
        tuner = OptionTuner()
        tuner.attach(copy.deepcopy(backbone))
        tuner.save(tmp_path)
        for config, message in (
            (AnswersConfig(num_virtual_tokens=4, start=StartConfig(adapter=str(tmp_path))), "16 rows of width 32"),
            (AnswersConfig(start=StartConfig(adapter=str(tmp_path / "nowhere"))), "a folder that a tuner has saved"),
        ):
            with pytest.raises(TunerError, match=message):
                OptionTuner(config).attach(backbone)
        with pytest.raises(TunerError, match="load the backbone that the adapter was trained on"):
            OptionTuner(AnswersConfig(start=StartConfig(adapter=str(tmp_path)))).attach(tiny_backbone("llama"))
