"""Losses by which one model teaches another: lists, classes, tokens, vectors. Scores in, a number out; no model.

A list is a row of scores, some of its places empty. Teachers are never trained through these.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


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


def kl_of_classes(
    student: Float[Tensor, "points classes"], teacher: Float[Tensor, "points classes"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Return the mean over points of KL(teacher || student), both softened, times the squared temperature.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (1503.02531), section 2.

    >>> scores = torch.tensor([[1.0, 2.0]])
    >>> kl_of_classes(scores, scores + 3).item()
    0.0
    """
    keep = torch.ones_like(student, dtype=torch.bool)
    return listwise_kl(student, teacher, keep, temperature)


def top_k_log_probs(
    logits: Float[Tensor, "points vocabulary"], k: int, temperature: float = 1.0
) -> tuple[Int[Tensor, "points k"], Float[Tensor, "points k"], Float[Tensor, " points"]]:
    """Return the ``k`` most likely tokens, their log probabilities and the log of what is left to all others.

    Where ``k`` is the whole vocabulary, nothing is left, and the last is minus infinity.

    >>> ids, logs, tail = top_k_log_probs(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), 1)
    >>> round(logs.exp().item(), 4), round(tail.exp().item(), 4)
    (0.25, 0.75)
    """
    logs = torch.log_softmax(logits.float() / temperature, dim=1)
    best, ids = logs.topk(k, dim=1)
    rest = logs.scatter(1, ids, float("-inf"))
    return ids, best, torch.logsumexp(rest, dim=1)


def kl_of_top_k(
    student: Float[Tensor, "points vocabulary"],
    ids: Int[Tensor, "points k"],
    logs: Float[Tensor, "points k"],
    tail: Float[Tensor, " points"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the mean over points of KL(teacher || student) over a teacher's top tokens and one bin for all others.

    Args:
        student: logits.
        ids: the teacher's most likely tokens.
        logs: their log probabilities, softened already.
        tail: log of the teacher's mass of all others; minus infinity = none.
        temperature: of the student; the loss is multiplied by its square.

    >>> logits = torch.randn(2, 9)
    >>> round(kl_of_top_k(logits, *top_k_log_probs(logits, 3)).abs().item(), 6)
    0.0
    """
    mine = torch.log_softmax(student.float() / temperature, dim=1)
    # Finite, because minus infinity times zero is no number.
    lowest = torch.finfo(torch.float32).min / 4
    rest = torch.logsumexp(mine.scatter(1, ids, lowest), dim=1, keepdim=True)
    found = torch.cat([mine.gather(1, ids), rest], dim=1)
    wanted = torch.cat([logs, tail[:, None]], dim=1).float()
    # Half precision on the way: the shares are made to sum to one again.
    wanted = torch.log_softmax(wanted.clamp(min=lowest), dim=1)
    return ((wanted - found) * wanted.exp()).sum(1).mean() * temperature**2


def vector_distance(student: Float[Tensor, "points dim"], teacher: Float[Tensor, "points dim"]) -> Float[Tensor, ""]:
    """Return the mean squared distance of two sets of vectors, each brought to length one.

    >>> vector_distance(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
    2.0
    """
    gap = F.normalize(student.float(), dim=1) - F.normalize(teacher.detach().float(), dim=1)
    return (gap**2).sum(1).mean()
