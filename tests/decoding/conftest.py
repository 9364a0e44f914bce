"""Prompts over the tiny tokenizer, and what the tests of decoding share."""

import numpy as np
import pytest

from m6rec.decoding import Opening
from m6rec.text.tokenize import TextTokenizer, TokenizedLayout

FAMILIES = ["bert", "gpt2", "llama", "qwen3", "t5"]


def tree(trunk, branch):
    """Return a prompt of plain ids: a trunk, and one branch that goes on behind it."""
    size, whole = len(trunk), len(trunk) + len(branch)
    return TokenizedLayout(
        ids=np.array([*trunk, *branch], dtype=np.int32),
        positions=np.arange(whole, dtype=np.int32),
        blocks=np.zeros(whole, dtype=np.int32),
        branches=(np.arange(whole) >= size).astype(np.int32),
        segments=np.zeros(whole, dtype=np.int32),
    )


@pytest.fixture(params=FAMILIES)
def backbone(request, tiny_backbone):
    return tiny_backbone(request.param)


@pytest.fixture
def text(backbone):
    return TextTokenizer(backbone.tokenizer)


@pytest.fixture
def openings(text):
    """Return three prompts of different lengths, as their texts."""
    trunks = ["the user clicked a red shirt", "the user bought", "ten hours ago the user watched a comedy film"]
    branches = ["now a", "is", "a warm"]
    begin, end = text.control_ids["[BOS]"], text.control_ids["[EOS]"]
    return [
        Opening(tree(text.text(trunk), [begin, *text.text(branch)]), frozenset([end]))
        for trunk, branch in zip(trunks, branches, strict=True)
    ]
