"""What a student is held against. Tensors in, a number out: this module knows no model."""

import torch
from torch import Tensor
from torch.nn import functional as F


def relation_loss(teacher: Tensor, student: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """Return how far a student's relations between tokens are from its teacher's, as a mean over tokens and heads.

    A relation is the softmax over the scaled products of one token's vector with all others': of queries with queries,
    keys with keys, or values with values. Teacher and student may have other widths and numbers of attention heads.

    Args:
        teacher: ``[batch, tokens, width]`` queries, keys or values.
        student: ``[batch, tokens, other width]`` the same.
        mask: ``[batch, 1, tokens, tokens]`` additive; tokens that do not see themselves are padding and not counted.
        num_heads: relation heads that both widths are cut into.

    Source: MiniLMv2 (arXiv 2012.15828), equations 3 to 6.

    >>> states = torch.randn(1, 3, 8)
    >>> float(relation_loss(states, states, torch.zeros(1, 1, 3, 3), 2).abs() < 1e-6)
    1.0
    """
    with torch.no_grad():
        wanted = _relations(teacher, mask, num_heads)
    found = _relations(student, mask, num_heads)
    divergence = F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).mean(1)
    counted = mask.squeeze(1).diagonal(dim1=-2, dim2=-1) == 0
    return (divergence * counted).sum() / counted.sum().clamp(min=1)


def _relations(states: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """Return ``[batch, heads, tokens, tokens]`` log-softmax of scaled products."""
    heads = states.float().unflatten(-1, (num_heads, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) * heads.shape[-1] ** -0.5
    return (scores + mask.float().clamp(min=-1e9)).log_softmax(-1)
