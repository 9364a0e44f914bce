"""The segments of a batch: each distinct one once, where every token finds its own, and what of it goes on.

This module knows no model and no layer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m6rec.backbones.conditions import of_tokens
from m6rec.errors import BackboneError
from m6rec.text.batch import TokenBatch


@dataclass(frozen=True)
class SegmentTable:
    """Distinct segments, one a row.

    Two segments are the same where their tokens are, the region that they are read in, and their condition.

    Args:
        ids: ``[segments, width]`` token ids, -1 behind a segment's end.
        is_target: whether a segment is read forward, in a branch.
        conditions: number of the condition that a segment is read under, -1 = none.
    """

    ids: Int[Tensor, "segments width"]
    is_target: Bool[Tensor, " segments"]
    conditions: Int[Tensor, " segments"]

    @property
    def lengths(self) -> Int[Tensor, " segments"]:
        """Tokens of each segment."""
        return (self.ids >= 0).sum(1)

    def take(self, rows: Int[Tensor, " rows"]) -> "SegmentTable":
        """Return some segments."""
        return SegmentTable(self.ids[rows], self.is_target[rows], self.conditions[rows])

    def batch(self) -> TokenBatch:
        """Return the segments as rows of a batch, each counting its positions from its own start."""
        ids = self.ids[:, : max(1, int(self.lengths.max()))]
        zero = torch.zeros_like(ids)
        return TokenBatch(
            ids=ids.clamp(min=0),
            keep=ids >= 0,
            positions=torch.arange(ids.shape[1], device=ids.device).expand_as(ids),
            blocks=zero,
            branches=zero + self.is_target[:, None],
            conditions=self.conditions[:, None],
        )


@dataclass(frozen=True)
class Segments:
    """The segments of a batch, and which of them each token is of.

    Args:
        table: each distinct one.
        owner: ``[batch, tokens]`` row of each token's segment.
        offset: ``[batch, tokens]`` a token's place in its segment.
        path: ``[batch, tokens]`` index of the segment on the way from the first trunk segment to the end of a branch.
    """

    table: SegmentTable
    owner: Int[Tensor, "batch tokens"]
    offset: Int[Tensor, "batch tokens"]
    path: Int[Tensor, "batch tokens"]


def cut(batch: TokenBatch) -> Segments:
    """Return the segments of ``batch``.

    Raises:
        BackboneError: the batch does not say which token is of which segment.
    """
    if batch.segments is None:
        raise BackboneError(
            "got a batch without segments, expected the segment of every token, for late interaction reads each alone; "
            "collate layouts (m6rec.text.batch.collate), or train without late_interaction"
        )
    starts = batch.keep & (_changes(batch.segments) | _changes(batch.branches))
    runs = (starts.flatten().cumsum(0) - 1).clamp(min=0).view_as(batch.ids)
    column = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    offset = (column - (column * starts).cummax(1).values).masked_fill(~batch.keep, 0)
    size = max(1, int(starts.sum())), 3 + int(offset.max())
    table = batch.ids.new_full(size, -1)
    table[runs[batch.keep], 0] = (batch.branches[batch.keep] > 0).long()
    if batch.conditions is not None:
        table[runs[batch.keep], 1] = of_tokens(batch)[batch.keep]
    table[runs[batch.keep], 2 + offset[batch.keep]] = batch.ids[batch.keep]
    distinct, which = table.unique(dim=0, return_inverse=True)
    found = SegmentTable(distinct[:, 2:], distinct[:, 0] > 0, distinct[:, 1])
    return Segments(found, which[runs], offset, _path(batch, starts))


def _path(batch: TokenBatch, starts: Bool[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """Number the trunk's segments; a branch's go on from those that it sees."""
    count, in_trunk = starts.cumsum(1), batch.branches == 0
    never = torch.iinfo(torch.int64).max
    times = torch.where(starts & in_trunk, batch.blocks, never).sort(1).values
    seen = torch.searchsorted(times, batch.blocks.contiguous(), right=True)
    begin = torch.where(starts & _changes(batch.branches), count, 0).cummax(1).values
    return torch.where(in_trunk, count - 1, seen + count - begin).masked_fill(~batch.keep, 0)


def _changes(numbers: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """Return where a row's number is another than in the column before."""
    return torch.cat([torch.ones_like(numbers[:, :1]) > 0, numbers[:, 1:] != numbers[:, :-1]], dim=1)


@dataclass(frozen=True)
class Junction:
    """What goes on into the joint layers: one column a vector.

    Args:
        tokens: the tree that the vectors stand in; a vector of several tokens stands where the last of them does.
        segment: ``[batch, vectors]`` row of each vector's segment.
        vector: ``[batch, vectors]`` which of its segment's vectors it is.
        path: ``[batch, vectors]`` index of its segment on the way.
        column: ``[batch, tokens]`` where each token of the batch finds its vector.
    """

    tokens: TokenBatch
    segment: Int[Tensor, "batch vectors"]
    vector: Int[Tensor, "batch vectors"]
    path: Int[Tensor, "batch vectors"]
    column: Int[Tensor, "batch tokens"]

    def spread(self, states: Float[Tensor, "batch vectors hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states of every token's vector."""
        return states.gather(1, self.column.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def join(batch: TokenBatch, segments: Segments, counts: Int[Tensor, " segments"]) -> Junction:
    """Return where the vectors of a batch's segments stand.

    Args:
        batch: that was cut.
        segments: its segments.
        counts: how many vectors each segment hands on: one a token, or fewer.
    """
    count, length = counts[segments.owner], segments.table.lengths[segments.owner].clamp(min=1)
    vector = segments.offset * count // length
    # A vector stands in the column of its last token: there its number changes behind it.
    stands = batch.keep & ((segments.offset + 1) * count // length != vector)
    width = max(1, int(stands.sum(1).max()))
    columns = (~stands).sort(dim=1, stable=True).indices[:, :width]
    whole = {name: value for name, value in vars(batch).items() if value is not None and name != "conditions"}
    fields = {name: value.gather(1, columns) for name, value in whole.items()}
    return Junction(
        tokens=TokenBatch(**{**fields, "keep": stands.gather(1, columns)}, conditions=batch.conditions),
        segment=segments.owner.gather(1, columns),
        vector=vector.gather(1, columns),
        path=segments.path.gather(1, columns),
        column=(stands.cumsum(1) - stands.long()).clamp(max=width - 1),
    )
