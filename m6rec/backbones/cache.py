"""The keys and values that one layer of a walk has made, kept for what is read later.

Attention hands them over as to any Hugging Face cache. This module knows no family and no tree.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """Keys and values of consecutive tokens; several rows may share one.

    Args:
        keys: ``[kept, heads, tokens, width]``.
        values: the same.
        rows: which of them each row of the batch has; ``None`` = its own.
    """

    keys: Float[Tensor, "kept heads tokens width"]
    values: Float[Tensor, "kept heads tokens width"]
    rows: Int[Tensor, " rows"] | None = None

    def take(self, rows: Int[Tensor, " rows"]) -> "Kept":
        """Return some rows, in the order of ``rows``, without copying anything yet."""
        return Kept(self.keys, self.values, rows if self.rows is None else self.rows[rows])

    @property
    def shared(self) -> bool:
        """Whether there are more rows than kept ones."""
        return self.rows is not None and len(self.rows) > len(self.keys)

    def spread(self) -> tuple[Float[Tensor, "rows heads tokens width"], Float[Tensor, "rows heads tokens width"]]:
        """Return every row's keys and values; one kept row is not copied for its sharers."""
        if self.rows is None:
            return self.keys, self.values
        if len(self.keys) == 1:
            size = len(self.rows), -1, -1, -1
            return self.keys.expand(*size), self.values.expand(*size)
        return self.keys[self.rows], self.values[self.rows]


class LayerCache:
    """What one layer has read: handed to ``Backbone.layer``, whose attention adds to it and sees all of it.

    One layer's, not one model's: a walk may take the same layer twice (shared layers) or leave layers out, and a cache
    that goes by the number a layer has in its model would mix them up.

    Args:
        kept: what was read before, in order.
        positions: ``[rows, before]`` of the tokens read before, for scores that depend on distances (T5).
        source: what the layer has made of another region, by cross-attention (T5); ``None`` = nothing.
    """

    def __init__(
        self,
        kept: tuple[Kept, ...] = (),
        positions: Int[Tensor, "rows before"] | None = None,
        source: "LayerCache | None" = None,
    ) -> None:
        self.kept, self.positions, self.source = kept, positions, source

    def fork(self, positions: Int[Tensor, "rows before"]) -> "LayerCache":
        """Return a cache that begins with what this one holds; what is added to it, this one never sees."""
        return LayerCache(self.kept, positions, self.source)

    def take(self, rows: Int[Tensor, " rows"]) -> "LayerCache":
        """Return some rows, in the order of ``rows``, without copying anything yet."""
        return type(self)(
            tuple(part.take(rows) for part in self.kept),
            None if self.positions is None else self.positions[rows],
            None if self.source is None else self.source.take(rows),
        )

    def get_seq_length(self, *_: Any) -> int:
        """Return how many tokens it holds."""
        return sum(part.keys.shape[-2] for part in self.kept)

    def update(
        self, keys: Float[Tensor, "rows heads tokens width"], values: Float[Tensor, "rows heads tokens width"], *_: Any
    ) -> tuple[Float[Tensor, "rows heads all width"], Float[Tensor, "rows heads all width"]]:
        """Add the keys and values of new tokens, and return all there are.

        What rows share stays apart, so that it is kept once; the rest is one tensor, however many steps it took.
        """
        *shared, last = (*self.kept, Kept(keys, values))
        if shared and not shared[-1].shared:
            last = _joined(shared.pop(), last)
        self.kept = (*shared, last)
        whole = self.kept[0]
        for part in self.kept[1:]:
            whole = _joined(whole, part)
        return whole.spread()


class WholeCache(LayerCache):
    """A cache of a region that is read once: it gives what it holds, whatever it is offered."""

    def update(
        self, keys: Float[Tensor, "rows heads tokens width"], values: Float[Tensor, "rows heads tokens width"], *_: Any
    ) -> tuple[Float[Tensor, "rows heads all width"], Float[Tensor, "rows heads all width"]]:
        """Return all there is."""
        return self.kept[0].spread()


class EnoughError(Exception):
    """A layer has given its keys and values, and nothing else is wanted of it."""


class KeysAlone(LayerCache):
    """A cache that takes a layer's keys and values in and stops the layer there: its output is nobody's.

    Raising is the one way out of a library's layer that all families have in common.
    """

    def update(
        self, keys: Float[Tensor, "rows heads tokens width"], values: Float[Tensor, "rows heads tokens width"], *_: Any
    ) -> tuple[Float[Tensor, "rows heads all width"], Float[Tensor, "rows heads all width"]]:
        """Add keys and values, and stop.

        Raises:
            EnoughError: always.
        """
        self.kept = (*self.kept, Kept(keys, values))
        raise EnoughError


def _joined(first: Kept, second: Kept) -> Kept:
    pairs = zip(first.spread(), second.spread(), strict=True)
    keys, values = (torch.cat(pair, dim=-2) for pair in pairs)
    return Kept(keys, values)
