"""Small modules over frozen text vectors: whitening, an item tower with an id residual, transitions.

Pure tensors to tensors; they know no text, no catalogue file and no backbone.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class Whitening(nn.Module):
    """PCA whitening fitted once: text vectors crowd in a cone, and a small network cannot spread them by itself.

    Args:
        dim_in: width of the text vectors.
        dim_out: leading principal directions kept.

    Source: UniSRec (2206.05941), section 3.1, which learns it; here it is computed.
    """

    mean: Tensor
    project: Tensor

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim_in))
        self.register_buffer("project", torch.eye(dim_in)[:, :dim_out].clone())

    def fit(self, vectors: Float[Tensor, "items dim"]) -> None:
        """Set mean and projection from ``vectors``; too few items keep fewer directions, the rest stay zero."""
        dim_out = self.project.shape[1]
        self.mean.copy_(vectors.mean(0))
        _, scales, directions = torch.linalg.svd(vectors - self.mean, full_matrices=False)
        rank = min(dim_out, int((scales > scales[0].clamp(min=1e-6) * 1e-4).sum()))
        project = torch.zeros_like(self.project)
        project[:, :rank] = directions[:rank].T / scales[:rank] * math.sqrt(len(vectors))
        self.project.copy_(project)

    def forward(self, vectors: Float[Tensor, "*items dim"]) -> Float[Tensor, "*items out"]:
        """Return whitened vectors, each scaled to a root mean square of one."""
        white = (vectors - self.mean) @ self.project
        return F.normalize(white, dim=-1) * math.sqrt(white.shape[-1])


class ItemTower(nn.Module):
    """Item vector = MLP(text vector) + a learnt residual for ids seen in training.

    Args:
        dim_text: width of the text vectors.
        hidden: width of the MLP's hidden layer.
        dim: width of the item vector.
        num_ids: ids with a residual; 0 = text alone.
        dropout: on the hidden layer.
        id_dropout: share of items that lose their residual in a training step, so that text alone must serve too.

    Differs: M6-Rec has no ids at all; the residual answers its readers' main criticism (weak collaborative signal) and
        is zero for an item that training has not seen.
    """

    def __init__(self, dim_text: int, hidden: int, dim: int, num_ids: int, dropout: float, id_dropout: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim_text, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.id_dropout = id_dropout
        self.residual = nn.Embedding(num_ids, dim) if num_ids else None
        if self.residual is not None:
            nn.init.normal_(self.residual.weight, std=0.02)

    def forward(self, texts: Float[Tensor, "items dim_text"], ids: Int[Tensor, " items"]) -> Float[Tensor, "items dim"]:
        """Return item vectors; ``ids`` of -1 have no residual."""
        vectors = self.outer(self.dropout(F.gelu(self.inner(texts))))
        if self.residual is None:
            return vectors
        known = (ids >= 0).to(vectors.dtype)
        if self.training and self.id_dropout:
            known = known * (torch.rand(ids.shape, device=ids.device) >= self.id_dropout)
        return vectors + self.residual(ids.clamp(min=0)) * known[:, None]


class Transitions(nn.Module):
    """Direct maps from each of the last events to the user vector: what a first-order Markov chain knows.

    Args:
        dim: width of event vectors and of the result.
        num_lags: how many of the last events have a map of their own; starts as the identity, halved a step back.

    Source: the idea of FPMC (Rendle et al., WWW 2010), on text-made vectors instead of id factors.
    """

    def __init__(self, dim: int, num_lags: int) -> None:
        super().__init__()
        self.maps = nn.ParameterList([nn.Parameter(torch.eye(dim) * 0.5**lag) for lag in range(num_lags)])

    def forward(self, events: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        """Return, at each position, the sum of the mapped last events (that position's own included)."""
        total = torch.zeros_like(events)
        for lag, weight in enumerate(self.maps):
            total = total + F.pad(events, (0, 0, lag, 0))[:, : events.shape[1]] @ weight
        return total


def own_history_pairs(
    inputs: Int[Tensor, "batch length"], targets: Int[Tensor, "batch length"], keep: Bool[Tensor, "batch length"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Return the (position, item) pairs that are no negatives: what the user had met by then, the target excepted.

    Args:
        inputs: item ids of the events read; -1 for none.
        targets: item ids to predict.
        keep: positions that have a target; positions are numbered among these, row by row.

    >>> rows, items = own_history_pairs(
    ...     torch.tensor([[3, 5]]), torch.tensor([[5, 3]]), torch.tensor([[True, True]]))
    >>> rows.tolist(), items.tolist()  # at the second position 3 is the target
    ([0, 1], [3, 5])
    """
    batch, length = inputs.shape
    number = (keep.flatten().cumsum(0) - 1).view(batch, length)
    earlier = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
    seen = inputs[:, None, :].expand(batch, length, length)
    chosen = earlier & keep[:, :, None] & (seen >= 0) & (seen != targets[:, :, None])
    return number[:, :, None].expand_as(seen)[chosen], seen[chosen]
