"""The branches of a batch in rows of their own: a few branches a row, over one trunk. This module knows no model."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from m6rec.text.batch import TokenBatch, branch_ends

# Attention runs best on some hundred queries at a time, and what branches of one row share is copied once a row.
PACK_TOKENS = 128


@dataclass(frozen=True)
class Packs:
    """Neighbouring branches of one tree, a pack a row; the tree's own mask keeps them apart.

    Args:
        rows: ``[packs]`` row of the batch.
        columns: ``[packs, longest]`` their columns there.
        keep: ``[packs, longest]`` ``False`` behind a pack's end.
        ends: ``[packs, most]`` place in the pack of each branch's last token; ``-1`` = none.
    """

    rows: Int[Tensor, " packs"]
    columns: Int[Tensor, "packs longest"]
    keep: Bool[Tensor, "packs longest"]
    ends: Int[Tensor, "packs most"]

    def slice(self, start: int, stop: int) -> "Packs":
        """Return some of them, no wider than they need."""
        keep, ends = self.keep[start:stop], self.ends[start:stop]
        longest, most = int(keep.sum(1).max()), int((ends >= 0).sum(1).max())
        return Packs(self.rows[start:stop], self.columns[start:stop, :longest], keep[:, :longest], ends[:, :most])

    def tokens(self, batch: TokenBatch, lead: int) -> TokenBatch:
        """Return them as new tokens of trees that ``lead`` virtual tokens stand before."""
        names = ("ids", "positions", "blocks", "branches")
        fields = {name: getattr(batch, name)[self.rows[:, None], self.columns] for name in names}
        return TokenBatch(**{**fields, "positions": fields["positions"] - lead, "keep": self.keep})


def pack(tokens: TokenBatch) -> Packs:
    """Return the branches of a batch, row by row and in their order."""
    rows, ends = branch_ends(tokens)
    if not len(rows):
        empty = rows.new_zeros(0, 0)
        return Packs(rows, empty, empty > 0, empty)
    before = torch.cat([torch.zeros_like(tokens.branches[:, :1]), tokens.branches[:, :-1]], dim=1)
    starts = (tokens.keep & (tokens.branches > 0) & (tokens.branches != before)).nonzero()[:, 1]
    most = max(1, PACK_TOKENS // int((ends - starts).max() + 1))
    number = torch.arange(len(rows), device=rows.device)
    rank = number - torch.searchsorted(rows, rows)
    first = (rank % most == 0).nonzero()[:, 0]
    last = torch.cat([first[1:], first.new_tensor([len(rows)])]) - 1
    members = first[:, None] + torch.arange(most, device=rows.device)
    is_member = members <= last[:, None]
    columns = starts[first, None] + torch.arange(int((ends[last] - starts[first]).max()) + 1, device=rows.device)
    keep = columns <= ends[last, None]
    places = ends[members.clamp(max=len(rows) - 1)] - starts[first, None]
    return Packs(rows[first], columns.minimum(ends[last, None]), keep, places.masked_fill(~is_member, -1))
