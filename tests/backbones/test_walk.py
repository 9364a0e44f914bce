"""The walk against the library's own forward, and the contract, for every family under both attentions."""

import pytest
import torch

from m6rec.backbones.base import Backbone
from tests.contracts.backbone_contract import (
    BLOCKS,
    BRANCHES,
    TRUNK,
    BackboneContract,
    close,
    pad,
    plain_batch,
    stack,
    tree_batch,
)

FAMILIES = ["bert", "gpt2", "llama", "qwen3", "t5"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", FAMILIES)
class TestEveryFamily(BackboneContract):
    @pytest.fixture
    def backbone(self, tiny_backbone, model_type: str, attention: str) -> Backbone:
        backbone = tiny_backbone(model_type, attention)
        assert backbone.model.config._attn_implementation == attention
        return backbone
