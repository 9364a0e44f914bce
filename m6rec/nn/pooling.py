"""From the states of a sequence to one vector. This module knows no model and no special token."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def mean(
    hidden: Float[Tensor, "batch tokens hidden"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch hidden"]:
    """Average the states of the kept tokens; a row that keeps nothing gives zeros.

    >>> mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """
    weights = keep.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def last(
    hidden: Float[Tensor, "batch tokens hidden"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch hidden"]:
    """Return the state of each row's last kept token (its first, where none is kept).

    >>> last(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[3.0]]
    """
    order = torch.arange(keep.shape[1], device=keep.device)
    return at(hidden, (order * keep).argmax(1, keepdim=True)).squeeze(1)


def at(
    hidden: Float[Tensor, "batch tokens hidden"], columns: Int[Tensor, "batch points"]
) -> Float[Tensor, "batch points hidden"]:
    """Return the states that stand in the given columns of each row.

    >>> at(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[2, 0]])).tolist()
    [[[9.0], [1.0]]]
    """
    return hidden.gather(1, columns.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def chunks(
    hidden: Float[Tensor, "batch tokens hidden"], lengths: Int[Tensor, " batch"], counts: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vectors hidden"]:
    """Average each row's tokens in ``counts`` stretches of nearly equal length; as many as tokens changes nothing.

    Args:
        hidden: states, padded on the right.
        lengths: tokens of each row.
        counts: vectors that each row becomes, at most its length.

    Returns:
        One vector a stretch, zeros behind a row's last.

    >>> states = torch.tensor([[[1.0], [3.0], [9.0]], [[2.0], [0.0], [0.0]]])
    >>> chunks(states, torch.tensor([3, 1]), torch.tensor([2, 1]))[..., 0].tolist()
    [[2.0, 9.0], [2.0, 0.0]]
    """
    order = torch.arange(hidden.shape[1], device=hidden.device)
    stretch = order * counts[:, None] // lengths.clamp(min=1)[:, None]
    vectors = torch.arange(max(1, int(counts.max())), device=hidden.device)
    members = (stretch[:, None] == vectors[:, None]) & (order < lengths[:, None])[:, None]
    weights = members.to(hidden.dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1) @ hidden
