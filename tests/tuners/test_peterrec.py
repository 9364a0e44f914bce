"""PeterRec's patches: where they stand, what they compute, and where the task token is read."""

import pytest
import torch
from torch.nn import functional as F

from m6rec.backbones.base import Backbone
from m6rec.errors import TunerError
from m6rec.tuners.bottleneck import Boarding, Landing, Parallel, Serial
from m6rec.tuners.peterrec import PeterRecConfig, PeterRecTuner
from m6rec.tuners.state import trained_share
from tests.contracts.backbone_contract import plain_batch
from tests.contracts.tuner_contract import TunerContract, states, train_step, tree

PLACEMENTS = ["2mp-serial", "1mp-serial", "parallel"]


class TestSerial(TunerContract):
    name, settings = "peterrec", {"placement": "1mp-serial"}

    @pytest.fixture(params=["bert", "gpt2", "t5"])
    def backbone(self, tiny_backbone, request: pytest.FixtureRequest) -> Backbone:
        return tiny_backbone(request.param)


class TestParallel(TunerContract):
    name = "peterrec"

    def tuner(self, **settings):
        return super().tuner(**{"placement": "parallel", **settings})

    @pytest.fixture
    def backbone(self, tiny_backbone) -> Backbone:
        return tiny_backbone("bert")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
def test_it_starts_as_the_frozen_model_and_learns(tiny_backbone, placement, model_type: str) -> None:
    backbone = tiny_backbone(model_type)
    before = states(backbone, tree(backbone))
    tuner = PeterRecTuner(PeterRecConfig(placement=placement))
    tuned = tuner.attach(backbone)
    assert torch.equal(states(tuned, tree(backbone)), before)
    train_step(tuner, tuned, tree(backbone))
    ups = [parameter for name, parameter in tuner.parameters().items() if "up.weight" in name]
    assert all(parameter.any() for parameter in ups)
    a_layer = {"2mp-serial": 2, "1mp-serial": 1, "parallel": 1}[placement]
    crossing = 3 if (model_type, placement) == ("t5", "2mp-serial") else 0
    assert len(ups) == a_layer * backbone.num_layers + crossing


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
def test_every_output_projection_has_its_patch(tiny_backbone, model_type: str) -> None:
    """Each site takes the whole width in, and all sites together are all that writes to the residual stream."""
    backbone = tiny_backbone(model_type)
    sites = backbone.sites()
    assert len(sites) == backbone.num_layers
    paths = [path for layer in sites for path in (*layer.attention, *layer.feed_forward)]
    writers = {"attention.output.dense", "output.dense", "c_proj", "o_proj", "down_proj", "SelfAttention.o"}
    writers |= {"EncDecAttention.o", "wo"}
    found = [name for name, _ in backbone.model.named_modules() if any(name.endswith(f".{end}") for end in writers)]
    assert sorted(paths) == sorted(found)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_serial_patch_keeps_what_it_follows(tiny_backbone, model_type: str) -> None:
    """Differs from the re-implementation that returns the patch of its input and drops the module before."""
    backbone = tiny_backbone(model_type)
    path = backbone.sites()[0].feed_forward[0]
    bare = backbone.model.get_submodule(path)
    width = bare.weight.shape[0] if model_type == "gpt2" else bare.in_features
    PeterRecTuner().attach(backbone)
    wrapped = backbone.model.get_submodule(path)
    assert isinstance(wrapped, Serial)
    torch.nn.init.normal_(wrapped.bottleneck.up.weight)
    hidden = torch.randn(2, 3, width)
    z, patch = bare(hidden), wrapped.bottleneck
    expected = z + F.gelu(z @ patch.down.weight.T + patch.down.bias) @ patch.up.weight.T + patch.up.bias
    torch.testing.assert_close(wrapped(hidden), expected)


def test_a_parallel_patch_has_no_skip_of_its_own(tiny_backbone) -> None:
    for model_type, kinds in (("gpt2", (Parallel,)), ("bert", (Boarding, Landing))):
        backbone = tiny_backbone(model_type)
        PeterRecTuner(PeterRecConfig(placement="parallel")).attach(backbone)
        span, hidden = backbone.sites()[0].spans[0], torch.randn(2, 3, 32)
        wrapped = [backbone.model.get_submodule(path) for path in dict.fromkeys((span.first, span.last))]
        assert tuple(map(type, wrapped)) == kinds
        found, bare = hidden, hidden
        for module in wrapped:
            found, bare = module(found), module.base_layer(bare)
        torch.testing.assert_close(found, bare)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_share_is_what_the_budget_promises(tiny_backbone, placement) -> None:
    backbone = tiny_backbone("gpt2")
    total = sum(parameter.numel() for parameter in backbone.parameters())
    share = trained_share(PeterRecTuner(PeterRecConfig(placement=placement, budget=0.05)).attach(backbone))
    assert 0.05 * total - 6 * (2 * 32 + 1) < share.trained <= 0.05 * total


def test_a_backbone_that_says_nowhere_is_refused(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    backbone.sites = lambda: ()
    with pytest.raises(TunerError, match="give it a sites"):
        PeterRecTuner().attach(backbone)


class TestTheTaskToken:
    """[EOS] is PeterRec's task token: it has to stand where it sees all of the text."""

    @pytest.mark.parametrize("model_type", ["gpt2", "bert"])
    def test_at_the_end_it_sees_every_token(self, tiny_backbone, model_type: str) -> None:
        backbone = tiny_backbone(model_type)
        end = len(backbone.tokenizer) - 1
        tuned = PeterRecTuner().attach(backbone)
        before = states(tuned, plain_batch([], [7, 8, 9, end]))[0, -1]
        for column in range(3):
            ids = [7, 8, 9, end]
            ids[column] = 20
            assert not torch.allclose(states(tuned, plain_batch([], ids))[0, -1], before)

    def test_at_the_front_of_a_decoder_it_sees_nothing(self, tiny_backbone) -> None:
        backbone = tiny_backbone("gpt2")
        end = len(backbone.tokenizer) - 1
        tuned = PeterRecTuner().attach(backbone)
        assert torch.equal(
            states(tuned, plain_batch([end, 7, 8, 9]))[0, 0], states(tuned, plain_batch([end, 20, 21, 22]))[0, 0]
        )

    def test_its_row_is_trained(self, tiny_backbone) -> None:
        backbone = tiny_backbone("gpt2")
        end = len(backbone.tokenizer) - 1
        tuner = PeterRecTuner()
        tuned = tuner.attach(backbone)
        tuned(plain_batch([7, 8, end]))[:, -1].sum().backward()
        assert backbone.control.grad is not None
        assert backbone.control.grad[-1].any()
