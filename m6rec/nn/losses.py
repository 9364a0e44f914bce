"""Losses over vectors: contrastive in a batch, and cross entropy over a whole catalogue. No model, no item.

Scores are inner products of user and item vectors that the caller has scaled (divided by the temperature).
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def contrastive(
    users: Float[Tensor, "positions dim"],
    items: Float[Tensor, "columns dim"],
    targets: Int[Tensor, " positions"],
    excluded: Bool[Tensor, "positions columns"] | None = None,
    log_q: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean InfoNCE loss of each user against its target column.

    Args:
        users: scaled user vectors.
        items: item vectors, one per column; in-batch negatives are the other columns.
        targets: the right column of each user.
        excluded: columns that are no negatives for a user (same item id, the user's own history); never the target.
        log_q: log of each column's chance to be in the batch; subtracted, so that popular items are not pushed down.

    Source: M6-Rec section 3 (retrieval loss); logQ: Yi et al., RecSys 2019.

    >>> contrastive(torch.eye(2) * 100, torch.eye(2), torch.tensor([0, 1])).item()
    0.0
    """
    return contrastive_over(users.float() @ items.float().T, targets, excluded, log_q)


def contrastive_over(
    scores: Float[Tensor, "positions columns"],
    targets: Int[Tensor, " positions"],
    excluded: Bool[Tensor, "positions columns"] | None = None,
    log_q: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, ""]:
    """Return :func:`contrastive` of scores in logits, however they were made.

    >>> contrastive_over(torch.eye(2) * 100, torch.tensor([0, 1])).item()
    0.0
    """
    if log_q is not None:
        scores = scores - log_q
    if excluded is not None:
        own = torch.zeros_like(excluded).scatter_(1, targets[:, None], True)
        scores = scores.masked_fill(excluded & ~own, float("-inf"))
    return torch.nn.functional.cross_entropy(scores, targets)


def catalogue_cross_entropy(
    users: Float[Tensor, "positions dim"],
    items: Float[Tensor, "catalogue dim"],
    targets: Int[Tensor, " positions"],
    excluded: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]] | None = None,
    chunk: int = 512,
) -> Float[Tensor, ""]:
    """Return the mean cross entropy of each user's target against every item of the catalogue.

    Equal to ``cross_entropy(users @ items.T, targets)`` with the excluded scores at minus infinity, but the score
    matrix exists one chunk of rows at a time: the gradients are made in the forward pass.

    Args:
        users: scaled user vectors.
        items: every item's vector.
        targets: item ids.
        excluded: (position, item) pairs that are no negatives, sorted by position; none may be a position's target.
        chunk: rows at a time; speed and memory only.

    Differs: under autocast the products and exponentials run in its dtype (bf16 halves the time on CPUs that have it);
        sums are float32.
    """
    loss: Tensor = _CatalogueCrossEntropy.apply(users, items, targets, excluded, chunk)
    return loss


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor, excluded: Any, chunk: int) -> Tensor:
        device = users.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        with torch.autocast(device, enabled=False):
            loss, user_gradient, item_gradient = _chunked_softmax(users, items, targets, excluded, chunk, dtype)
        ctx.save_for_backward(user_gradient.to(users.dtype), item_gradient.to(items.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        user_gradient, item_gradient = ctx.saved_tensors
        return user_gradient * gradient, item_gradient * gradient, None, None, None


def _chunked_softmax(
    users: Tensor, items: Tensor, targets: Tensor, excluded: Any, chunk: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss and its gradients with respect to users and items."""
    count = len(users)
    users, items = users.float(), items.float()
    low_users, low_items = users.to(dtype), items.to(dtype)
    user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(items)
    target_scores = (users * items[targets]).sum(1)
    loss = users.new_zeros(())
    starts = list(range(0, count, chunk))
    bounds = None
    if excluded is not None:
        edges = torch.tensor([*starts, count], device=users.device)
        bounds = torch.searchsorted(excluded[0].contiguous(), edges).tolist()
    for index, start in enumerate(starts):
        stop = min(start + chunk, count)
        scores = low_users[start:stop] @ low_items.T
        if bounds is not None:
            pairs = slice(bounds[index], bounds[index + 1])
            scores[excluded[0][pairs] - start, excluded[1][pairs]] = float("-inf")
        # The shift takes the target's exact score in, so that rounding cannot make the largest exponent positive.
        shift = torch.maximum(scores.amax(1).float(), target_scores[start:stop])
        weights = scores.sub_(shift.to(dtype)[:, None]).exp_()
        shift = shift.to(dtype).float()
        total = weights.sum(1, dtype=torch.float32)
        loss = loss + (total.log() + shift - target_scores[start:stop]).sum()
        scale = 1.0 / (total * count)
        user_gradient[start:stop] = (weights @ low_items).float() * scale[:, None]
        item_gradient += (weights.T @ (users[start:stop] * scale[:, None]).to(dtype)).float()
    user_gradient -= items[targets] / count
    item_gradient.index_add_(0, targets, users, alpha=-1.0 / count)
    return loss / count, user_gradient, item_gradient
