"""The tree mask against its definition, written out token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec.nn.masks import additive, tree_mask

token = st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 3))


def visible(query: int, key: int, tokens: list[tuple[bool, int, int]], causal: bool) -> bool:
    keep, block, branch = zip(*tokens, strict=True)
    if not keep[key]:
        return False
    if branch[key] == 0:
        return block[key] <= block[query] and (key <= query or not causal)
    return branch[key] == branch[query] and key <= query


@given(tokens=st.lists(token, min_size=1, max_size=12), causal=st.booleans())
@settings(max_examples=100, deadline=None)
def test_tree_mask_is_its_definition(tokens: list[tuple[bool, int, int]], causal: bool) -> None:
    keep, blocks, branches = (torch.tensor([column]) for column in zip(*tokens, strict=True))
    mask = tree_mask(keep, blocks, branches, causal)
    size = range(len(tokens))
    assert mask[0].tolist() == [[visible(query, key, tokens, causal) for key in size] for query in size]


def test_one_block_is_a_prefix_lm() -> None:
    zero = torch.zeros(1, 4, dtype=torch.long)
    mask = tree_mask(zero == 0, zero, torch.tensor([[0, 0, 1, 1]]), causal=False)
    assert mask[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_additive_is_zero_or_the_least_finite_number(dtype: torch.dtype) -> None:
    numbers = additive(torch.tensor([[True, False]]), dtype)
    assert numbers.dtype == dtype
    assert numbers.tolist() == [[0.0, torch.finfo(dtype).min]]
    assert torch.softmax(numbers[:, 1:], dim=-1).isfinite().all()
