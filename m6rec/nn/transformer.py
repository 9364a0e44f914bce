"""A small causal transformer over a sequence of vectors.

Shared by whatever reads a history as one vector an event. It knows no items, no text and no task.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class CausalTransformer(nn.Module):
    """Pre-norm transformer in which each slot sees itself and the kept slots before it.

    Args:
        width: size of a vector in and out; a multiple of ``num_heads``.
        num_layers: number of blocks; 0 leaves only the final norm.
        num_heads: attention heads per block.
        dropout: share of values dropped from attention weights and from both residual branches.
        max_length: positions that are told apart; slots (or distances) beyond share the last one.
        positions: ``"relative"`` adds a learnt bias per head and distance in slots, so that padding on either side and
            lengths never seen in training change nothing; ``"absolute"`` adds a learnt vector per kept slot, counted
            from the first.
        expansion: hidden width of the feed-forward part over ``width``.

    **Source:** Kang and McAuley, Self-Attentive Sequential Recommendation, 2018 (the block); Raffel et al., Exploring
    the Limits of Transfer Learning, 2020, section 2.1 (relative bias).
    **Differs:** pre-norm and GELU, which train at higher rates; one bias per distance instead of logarithmic buckets.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        max_length: int,
        positions: Literal["relative", "absolute"] = "relative",
        expansion: int = 4,
    ) -> None:
        super().__init__()
        relative = max_length if positions == "relative" else 0
        self.places = nn.Embedding(max_length, width) if positions == "absolute" else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(
            CausalBlock(width, num_heads, dropout, relative, expansion) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "batch length width"], keep: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """Return one state per slot.

        Args:
            x: one vector per slot.
            keep: True where the slot holds something; the states of other slots mean nothing (but are finite).

        Returns:
            ``[batch, length, width]``; state ``t`` depends on the kept slots ``<= t`` alone.
        """
        if self.places is not None:
            place = (keep.cumsum(1) - 1).clamp(0, self.places.num_embeddings - 1)
            x = x + self.places(place)
        visible = visible_slots(keep)
        for block in self.blocks:
            x = block(x, visible)
        return torch.as_tensor(self.norm(x))


class CausalBlock(nn.Module):
    """One pre-norm block: masked self-attention, then a feed-forward part.

    Args:
        width: size of a vector.
        num_heads: attention heads.
        dropout: share of values dropped.
        num_distances: learnt bias per head for distances ``0..num_distances - 1``; 0 = none.
        expansion: hidden width of the feed-forward part over ``width``.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, num_distances: int, expansion: int) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_in, self.feed_out = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.bias = nn.Parameter(torch.zeros(num_heads, num_distances)) if num_distances else None
        # Residual branches start small: the untrained stack is near the identity, whatever its depth.
        for last in (self.output, self.feed_out):
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)

    def forward(
        self, x: Float[Tensor, "batch length width"], visible: Bool[Tensor, "batch length length"]
    ) -> Float[Tensor, "batch length width"]:
        """Return the block's output; ``visible[b, q, k]`` says that slot ``q`` sees slot ``k``."""
        x = x + F.dropout(self._attend(self.attention_norm(x), visible), self.dropout, self.training)
        hidden = F.dropout(F.gelu(self.feed_in(self.feed_norm(x))), self.dropout, self.training)
        return x + F.dropout(self.feed_out(hidden), self.dropout, self.training)

    def _attend(self, x: Tensor, visible: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.query_key_value(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if self.bias is not None:
            scores = scores + self._bias(length)
        weights = torch.softmax(scores.masked_fill(~visible[:, None], -math.inf), dim=-1)
        mixed = F.dropout(weights, self.dropout, self.training) @ value
        return torch.as_tensor(self.output(mixed.transpose(1, 2).reshape(batch, length, width)))

    def _bias(self, length: int) -> Tensor:
        assert self.bias is not None
        slots = torch.arange(length, device=self.bias.device)
        distance = (slots[:, None] - slots).clamp(0, self.bias.shape[1] - 1)
        return self.bias[:, distance]


def visible_slots(keep: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length length"]:
    """Return what each slot sees: itself, and the kept slots before it.

    A slot always sees itself, so that no row of the softmax is empty.

    >>> visible_slots(torch.tensor([[False, True, True]]))[0].int().tolist()
    [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    """
    length = keep.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
    self_ = torch.eye(length, dtype=torch.bool, device=keep.device)
    return (causal & keep[:, None, :]) | self_
