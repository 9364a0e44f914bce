"""The contract for every family under both attentions, and the walk against the library's own forward."""

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.nn.masks import additive, tree_mask
from m6rec.text.batch import TokenBatch
from tests.contracts.backbone_contract import (
    BLOCKS,
    BRANCHES,
    TRUNK,
    BackboneContract,
    close,
    plain_batch,
    stack,
    tree_batch,
)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3", "t5"])
class TestEveryFamily(BackboneContract):
    @pytest.fixture
    def backbone(self, tiny_backbone, model_type: str, attention: str) -> Backbone:
        backbone = tiny_backbone(model_type, attention)
        assert backbone.model.config._attn_implementation == attention
        return backbone


@pytest.fixture(params=["eager", "sdpa"])
def attention(request) -> str:
    return request.param


def library(backbone: Backbone, **inputs: torch.Tensor) -> torch.Tensor:
    """Return the last normed states of the library's own forward."""
    with torch.no_grad():
        return backbone.model(output_hidden_states=True, **inputs).hidden_states[-1]


def walk(backbone: Backbone, batch: TokenBatch) -> torch.Tensor:
    with torch.no_grad():
        return backbone(batch)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "qwen3"])
class TestEqualsTheLibrary:
    def test_on_plain_padded_texts(self, tiny_backbone, model_type: str, attention: str) -> None:
        backbone = tiny_backbone(model_type, attention)
        batch = stack(plain_batch(TRUNK), plain_batch([7, 8, 9]))
        theirs = library(backbone, input_ids=batch.ids, attention_mask=batch.keep.long())
        close(walk(backbone, batch)[batch.keep], theirs[batch.keep])

    def test_on_a_tree(self, tiny_backbone, model_type: str, attention: str) -> None:
        backbone = tiny_backbone(model_type, attention)
        batch = stack(tree_batch(TRUNK, BLOCKS, BRANCHES), plain_batch(TRUNK, [20, 21, 22]))
        visible = tree_mask(batch.keep, batch.blocks, batch.branches, causal=backbone.family == "causal")
        theirs = library(
            backbone,
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=additive(visible.unsqueeze(1)),
        )
        close(walk(backbone, batch)[batch.keep], theirs[batch.keep])


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3"])
def test_logits_equal_the_library(tiny_backbone, model_type: str, attention: str) -> None:
    backbone, batch = tiny_backbone(model_type, attention), plain_batch(TRUNK)
    with torch.no_grad():
        theirs = backbone.model(input_ids=batch.ids).logits
    close(backbone.logits(walk(backbone, batch))[..., : backbone.first_control], theirs[..., : backbone.first_control])


def test_t5_equals_the_library(tiny_backbone, attention: str) -> None:
    backbone = tiny_backbone("t5", attention)
    batch = stack(plain_batch(TRUNK, [20, 21, 22]), plain_batch([7, 8], [23, 24]))
    source, target = batch.keep & (batch.branches == 0), batch.keep & (batch.branches == 1)
    ours = walk(backbone, batch)
    for row, (ids, answer) in enumerate([(TRUNK, [20, 21, 22]), ([7, 8], [23, 24])]):
        with torch.no_grad():
            theirs = backbone.model(
                input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([answer]), output_hidden_states=True
            )
        close(ours[row][source[row]], theirs.encoder_last_hidden_state[0])
        close(ours[row][target[row]], theirs.decoder_hidden_states[-1][0])
        logits = backbone.logits(ours[row][target[row]])[:, : backbone.first_control]
        close(logits, theirs.logits[0][:, : backbone.first_control])


def test_t5_reads_a_source_through_the_encoder_alone(tiny_backbone) -> None:
    backbone = tiny_backbone("t5")
    backbone.model.decoder.block[0].register_forward_pre_hook(lambda *_: pytest.fail("the decoder ran"))
    assert walk(backbone, plain_batch(TRUNK)).isfinite().all()


def test_encoder_logits_are_tied_to_the_embedding(tiny_backbone) -> None:
    backbone, hidden = tiny_backbone("bert"), torch.randn(2, 3, 32)
    table = backbone.model.get_input_embeddings().weight[: backbone.first_control]
    close(backbone.logits(hidden), hidden @ torch.cat([table, backbone.control]).T)


def test_control_rows_start_as_the_models_own_begin_and_end(tiny_backbone) -> None:
    backbone = tiny_backbone("bert")
    begin, end = backbone.model.get_input_embeddings().weight[[2, 3]]
    assert torch.equal(backbone.control, torch.stack([begin, end, begin, end]))


@pytest.mark.parametrize("model_type", ["bert", "qwen3", "t5"])
def test_control_rows_are_float32_over_a_model_in_bfloat16(tiny_backbone, model_type: str) -> None:
    whole = tiny_backbone(model_type)
    backbone = type(whole)(whole.model.to(torch.bfloat16), whole.tokenizer, whole.name)
    assert backbone.control.dtype == torch.float32
    hidden = backbone(plain_batch([7, 8, backbone.first_control], [20, backbone.first_control + 3]))
    assert hidden.dtype == backbone.logits(hidden).dtype == torch.bfloat16


def test_control_rows_receive_gradients_and_words_do_not(tiny_backbone) -> None:
    backbone = tiny_backbone("gpt2")
    backbone.control.requires_grad_(True)
    first = backbone.first_control
    backbone(plain_batch([first, 7, first + 1])).sum().backward()
    assert backbone.control.grad[:2].abs().sum() > 0
    assert backbone.control.grad[2:].abs().sum() == 0
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
