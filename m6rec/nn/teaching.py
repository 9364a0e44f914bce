"""Losses by which one scorer of lists teaches another. Scores in, a number out; no model, no item.

A list is a row of scores, some of its places empty. Teachers are never trained through these.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def listwise_kl(
    student: Float[Tensor, "lists places"],
    teacher: Float[Tensor, "lists places"],
    keep: Bool[Tensor, "lists places"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the mean over lists of KL(teacher || student), both softened over the places that are kept.

    Args:
        student: logits.
        teacher: logits.
        keep: ``False`` = empty; a list without two places says nothing and is not counted.
        temperature: of both; the loss is multiplied by its square, so that gradients keep their size.

    Source: RocketQAv2 (2110.07367), section 3.2 (dynamic listwise distillation); the square: Hinton et al., 2015.

    >>> scores = torch.tensor([[1.0, 2.0]])
    >>> listwise_kl(scores, scores + 3, torch.ones(1, 2, dtype=torch.bool)).item()
    0.0
    """
    counted = keep.sum(1) > 1
    # Finite, because minus infinity times zero is no number; exp of it is zero all the same.
    empty = torch.finfo(torch.float32).min / 4
    mine, theirs = (
        torch.log_softmax((scores.float() / temperature).masked_fill(~keep, empty), dim=1)
        for scores in (student, teacher.detach())
    )
    each = ((theirs - mine) * theirs.exp()).masked_fill(~keep, 0.0).sum(1) * temperature**2
    return (each * counted).sum() / counted.sum().clamp(min=1)


def margin_mse(
    student: Float[Tensor, "lists places"],
    teacher: Float[Tensor, "lists places"],
    keep: Bool[Tensor, "lists places"],
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the two margins between the first place and every other that is kept.

    Args:
        student: logits; the positive stands first.
        teacher: logits of the same places.
        keep: ``False`` = empty.

    Source: Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation
        (2010.02666), equation 3.

    >>> margin_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[5.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)).item()
    1.0
    """
    teacher = teacher.detach()
    gap = (student[:, :1] - student[:, 1:]).float() - (teacher[:, :1] - teacher[:, 1:]).float()
    counted = keep[:, :1] & keep[:, 1:]
    return (gap**2 * counted).sum() / counted.sum().clamp(min=1)


def listwise_cross_entropy(
    scores: Float[Tensor, "lists places"], keep: Bool[Tensor, "lists places"]
) -> Float[Tensor, ""]:
    """Return the mean cross entropy of the first place of each list among those that are kept.

    Source: RocketQAv2, section 3.2 (the re-ranker's own loss, trained beside the retriever).

    >>> round(listwise_cross_entropy(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)).item(), 4)
    0.6931
    """
    counted = keep[:, 0] & (keep.sum(1) > 1)
    logs = torch.log_softmax(scores.float().masked_fill(~keep, torch.finfo(torch.float32).min / 4), dim=1)[:, 0]
    return -(logs * counted).sum() / counted.sum().clamp(min=1)
