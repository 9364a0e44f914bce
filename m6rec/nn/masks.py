"""Attention masks over a tree of tokens: which key each query sees, as booleans and as numbers to add to the scores.

This module knows no model: whether a family reads its trunk in both directions is an argument.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def tree_mask(
    keep: Bool[Tensor, "batch tokens"],
    blocks: Int[Tensor, "batch tokens"],
    branches: Int[Tensor, "batch tokens"],
    causal: bool,
    since: int = 0,
) -> Bool[Tensor, "batch queries tokens"]:
    """Return which keys (last axis) each query sees.

    A trunk key (branch 0) is seen by every query of its block or a later one; a branch's key by its own branch alone,
    and only forward in time. The trunk never sees a branch, a branch never sees its siblings.

    Args:
        keep: ``False`` on padding, which nobody sees.
        blocks: time of each token; all zero = one bidirectional source (prefix-LM).
        branches: 0 = trunk, 1.. = branch number. The trunk's tokens stand before the branches'.
        causal: whether a trunk token sees only trunk tokens before itself (GPT family) or its whole block (BERT, T5).
        since: column of the first query; what stands before is keys only (it was read before).

    Source: M6-Rec (arXiv 2205.08084) section 3, the prefix-LM mask of UniLM; blocks and branches are ours.

    >>> zero = torch.zeros(1, 3, dtype=torch.long)
    >>> tree_mask(torch.ones(1, 3, dtype=torch.bool), zero, torch.tensor([[0, 0, 1]]), causal=False).int()[0].tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """
    order = torch.arange(keep.shape[1], device=keep.device)
    backward = order[since:, None] >= order[None, :]
    query_branch, key_branch = branches[:, since:, None], branches[:, None, :]
    in_trunk = (key_branch == 0) & (blocks[:, None, :] <= blocks[:, since:, None])
    in_branch = (key_branch != 0) & (query_branch == key_branch) & backward
    if causal:
        in_trunk = in_trunk & backward
    return keep[:, None, :] & (in_trunk | in_branch)


def seen(mask: Float[Tensor, "batch 1 tokens keys"]) -> Bool[Tensor, "batch tokens"]:
    """Return which tokens anybody sees, be it only they themselves: all but padding.

    Padding itself sees the trunk, so what a token sees does not tell.

    Args:
        mask: additive, of a batch of which nothing was read before. Two stacks have two sets of keys side by side.

    >>> seen(additive(torch.tensor([[[[True, False], [True, False]]]]))).tolist()
    [[True, False]]
    """
    return (mask == 0).any(-2).squeeze(1).unflatten(-1, (-1, mask.shape[2])).any(1)


def additive(mask: Bool[Tensor, "*shape"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
    """Return 0 where ``mask`` holds and the most negative number of ``dtype`` elsewhere.

    Attention takes numbers, never booleans: under transformers' eager attention a boolean mask silently adds 0 and 1,
    and the future leaks. A finite minimum, not minus infinity: a query that sees nothing must not become NaN.

    >>> additive(torch.tensor([True, False])).tolist()
    [0.0, -3.4028234663852886e+38]
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
