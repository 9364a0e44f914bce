"""Reading on: what a backbone has read is kept, and later tokens of the same tree are read without reading it again.

Two uses of one idea: candidates that share a user's trunk, and generation token by token. This module knows no family
beyond whether a trunk that has been read may still grow, and no way to choose a next token.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from m6rec.backbones.base import Backbone
from m6rec.backbones.cache import EnoughError, KeysAlone, LayerCache
from m6rec.errors import BackboneError
from m6rec.nn import pooling
from m6rec.text.batch import TokenBatch

_FIELDS = ("ids", "keep", "positions", "blocks", "branches")


@dataclass(frozen=True)
class Past:
    """What a backbone has read: keys and values of every layer, and where their tokens stand in the tree.

    It never changes: reading on gives a new one, and one past may be read on from many times.

    Args:
        tokens: all tokens so far, those that a tuner reads before every text included (``Backbone.extend``).
        lead: how many of the first columns these are.
        layers: the walk it has taken.
        caches: one a step of the walk.
    """

    tokens: TokenBatch
    lead: int
    layers: tuple[int, ...]
    caches: tuple[LayerCache, ...]

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.tokens.size

    def take(self, rows: Int[Tensor, " rows"]) -> "Past":
        """Return some rows, in the order of ``rows``; a row may come many times (candidates) or never (lost beams).

        Nothing is copied yet, and rows that come many times are kept once for good.
        """
        return Past(self.tokens.take(rows), self.lead, self.layers, tuple(cache.take(rows) for cache in self.caches))

    def follow(
        self, ids: Int[Tensor, "batch new"], keep: Bool[Tensor, "batch new"] | None = None, branch: int = 1
    ) -> TokenBatch:
        """Return ids as the next tokens of a branch: behind its last one, or, if it is new, behind the whole trunk.

        Args:
            ids: token ids, one row a row of the past.
            keep: ``False`` on padding, which stands on the right; ``None`` = there is none.
            branch: its number.
        """
        mine, trunk = (self.tokens.keep & (self.tokens.branches == number) for number in (branch, 0))
        seen = torch.where(mine.any(1, keepdim=True), mine, trunk)
        last = self.tokens.positions.masked_fill(~seen, self.lead - 1).amax(1, keepdim=True) - self.lead
        block = self.tokens.blocks.masked_fill(~seen, 0).amax(1, keepdim=True)
        order = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return TokenBatch(
            ids=ids,
            keep=torch.ones_like(ids, dtype=torch.bool) if keep is None else keep,
            positions=last + order,
            blocks=block.expand_as(ids),
            branches=torch.full_like(ids, branch),
        )


def read(
    backbone: Backbone,
    batch: TokenBatch,
    hidden: Float[Tensor, "batch tokens hidden"] | None = None,
    layers: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "batch columns hidden"], Past]:
    """Walk as ``backbone(batch)`` does, and keep what later tokens will look at.

    Args:
        backbone: any with attention; one under a tuner reads the tuner's virtual tokens here, once.
        batch: a tree, or the beginning of one.
        hidden: states that enter the first layer of the walk, those of ``backbone.extend(batch)``; ``None`` = embed.
        layers: the walk; ``None`` = all.

    Returns:
        The normed states of ``batch``, and what was read.

    Raises:
        BackboneError: the backbone has no keys and values to keep (a convolution).
    """
    whole = backbone.extend(batch)
    steps = tuple(range(backbone.num_layers) if layers is None else layers)
    past = Past(whole, whole.ids.shape[1] - batch.ids.shape[1], steps, tuple(LayerCache() for _ in steps))
    states = _walk(backbone, whole, backbone.mask(whole), past, hidden)
    return backbone.norm(states)[:, past.lead :], past


def read_on(
    backbone: Backbone, past: Past, batch: TokenBatch, hidden: Float[Tensor, "batch tokens hidden"] | None = None
) -> tuple[Float[Tensor, "batch columns hidden"], Past]:
    """Read further tokens of the same trees, equal to reading everything at once.

    Args:
        backbone: the one that has read ``past``, in the same scenes and under the same tuner.
        past: what was read, one row a row of ``batch`` (``Past.take``); it stays as it is.
        batch: new tokens alone, with their places in the whole tree: branches of what was read, or more of a branch
            (``Past.follow``). The trunk may grow too, as far as nothing that was read would have seen it: in a decoder
            always, in an encoder by later blocks, in T5 never. Padding may stand anywhere: ``keep`` hides it.
        hidden: states that enter the first layer of the walk; ``None`` = embed.

    Returns:
        The normed states of ``batch``, and the past with it.

    Raises:
        BackboneError: another number of rows, or tokens that something read before would have had to see.
    """
    states, grown = _walk_on(backbone, past, batch, hidden)
    return backbone.norm(states), grown


def read_ends(
    backbone: Backbone,
    past: Past,
    batch: TokenBatch,
    ends: Int[Tensor, "batch points"],
    hidden: Float[Tensor, "batch tokens hidden"] | None = None,
) -> Float[Tensor, "batch points hidden"]:
    """Return the states of new branches' last tokens alone, equal to :func:`read_on`'s, for less.

    In the last layer all others are keys and values and no more: of a candidate that is read by its ``[EOS]``, its
    feed-forward and most of its attention run on one token.

    Args:
        backbone: the one that has read ``past``.
        past: what was read, one row a row of ``batch``, and something of it.
        batch: new tokens alone, as in :func:`read_on`.
        ends: column of each branch's last token in ``batch``; ``-1`` = none (its state means nothing).
        hidden: states that enter the first layer of the walk; ``None`` = embed.

    Raises:
        BackboneError: as :func:`read_on`.
    """
    wanted = ends.clamp(min=0)
    if not past.layers:
        return pooling.at(read_on(backbone, past, batch, hidden)[0], wanted)
    *lower, last = past.layers
    states, grown = _walk_on(backbone, replace(past, layers=tuple(lower), caches=past.caches[:-1]), batch, hidden)
    since, top = past.tokens.ids.shape[1], past.caches[-1]
    new = _columns(grown.tokens, since)
    keys = KeysAlone(top.kept, past.tokens.positions, top.source)
    with suppress(EnoughError):
        backbone.layer(last, states, backbone.mask(grown.tokens, since), new.positions, keys)
    # An end stands behind the others once more, to ask; where it stood before, nobody may see it.
    order = torch.arange(new.ids.shape[1], device=ends.device)
    others = replace(new, keep=new.keep & ~(order == ends.unsqueeze(-1)).any(1))
    points = TokenBatch(**{name: getattr(new, name).gather(1, wanted) for name in _FIELDS})
    before = _joined(past.tokens, others)
    whole = _joined(before, replace(points, keep=points.keep & (ends >= 0)))
    cache = LayerCache(keys.kept, before.positions, keys.source)
    mask = backbone.mask(whole, since=before.ids.shape[1])
    return backbone.norm(backbone.layer(last, pooling.at(states, wanted), mask, points.positions, cache))


def _walk_on(
    backbone: Backbone, past: Past, batch: TokenBatch, hidden: Float[Tensor, "batch tokens hidden"] | None
) -> tuple[Float[Tensor, "batch tokens hidden"], Past]:
    """Return the states of new tokens before the norm, and the past with them."""
    _check(backbone, past, batch)
    new = replace(batch, positions=batch.positions + past.lead, segments=None)
    whole = _joined(past.tokens, new)
    caches = tuple(cache.fork(past.tokens.positions) for cache in past.caches)
    grown = Past(whole, past.lead, past.layers, caches)
    return _walk(backbone, new, backbone.mask(whole, since=past.tokens.ids.shape[1]), grown, hidden), grown


def _walk(
    backbone: Backbone,
    new: TokenBatch,
    mask: Float[Tensor, "batch 1 tokens keys"],
    past: Past,
    hidden: Float[Tensor, "batch tokens hidden"] | None,
) -> Float[Tensor, "batch tokens hidden"]:
    """Walk over new tokens, up to the norm; the caches of ``past`` take their keys and values in."""
    states = backbone.embed(new.ids, new.positions) if hidden is None else hidden
    for index, cache in zip(past.layers, past.caches, strict=True):
        states = backbone.layer(index, states, mask, new.positions, cache)
    return states


def _joined(first: TokenBatch, second: TokenBatch) -> TokenBatch:
    columns = {name: torch.cat([getattr(first, name), getattr(second, name)], dim=1) for name in _FIELDS}
    return TokenBatch(**columns, conditions=first.conditions)


def _columns(tokens: TokenBatch, since: int) -> TokenBatch:
    return TokenBatch(**{name: getattr(tokens, name)[:, since:] for name in _FIELDS})


def _check(backbone: Backbone, past: Past, batch: TokenBatch) -> None:
    """Refuse new tokens that do not belong to what was read, or that it would have had to see."""
    if batch.size != past.size:
        raise BackboneError(
            f"got {batch.size} rows to read on from {past.size}, expected as many; bring them together with past.take"
        )
    if backbone.family == "causal":
        return
    trunk = batch.keep & (batch.branches == 0)
    latest = past.tokens.blocks.masked_fill(~past.tokens.keep, -1).amax(1, keepdim=True)
    late = trunk if backbone.family == "seq2seq" else trunk & (batch.blocks <= latest)
    if bool(late.any()):
        raise BackboneError(
            f"got trunk tokens to read on with {backbone.name}, expected branches: what was read would have seen them; "
            "read the trunk anew" + ("" if backbone.family == "seq2seq" else ", or put them into a later block")
        )
