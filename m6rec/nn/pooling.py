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
