"""Many documents in one row, none of which sees another: each is a branch of a tree without a trunk.

A model that reads forward reads source and target alike, so a whole example is one branch. A prefix-LM or an
encoder-decoder reads the source in the trunk; a row then has one example with a source, whose tokens are a block that
the other branches do not see. Knows no text, no model and no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m6rec.tasks.pretraining.objectives import Regions
from m6rec.text.tokenize import Ids, TokenizedLayout

NOTHING = -100
_OPEN_ROWS = 64


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Args:
        layout: ids and their places in the tree.
        labels: ``[tokens]`` int64 the token to predict at each, :data:`NOTHING` where there is none.
    """

    layout: TokenizedLayout
    labels: NDArray[np.int64]


def pack(
    rooms: NDArray[np.int64], width: int, sourced: NDArray[np.bool_], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return which documents go into each row: first fit, over documents in random order.

    Args:
        rooms: ``[documents]`` tokens that each needs at most.
        width: tokens of a row.
        sourced: ``[documents]`` bool: those of which a row takes only one; it comes first.
        rng: of the order.
    """
    rows: list[_Open] = []
    still_open: list[_Open] = []
    for document in rng.permutation(len(rooms)).tolist():
        need, single = int(rooms[document]), bool(sourced[document])
        row = next((row for row in still_open if need <= row.left and not (single and row.has_source)), None)
        if row is None:
            if len(still_open) == _OPEN_ROWS:  # the fullest is the one that hardly anything fits into
                still_open.remove(min(still_open, key=lambda row: row.left))
            row = _Open(width)
            rows.append(row)
            still_open.append(row)
        row.documents.insert(0 if single else len(row.documents), document)
        row.left, row.has_source = row.left - need, row.has_source or single
    return [np.array(row.documents, dtype=np.int64) for row in rows]


@dataclass(eq=False)
class _Open:
    """A row that is being filled."""

    left: int
    has_source: bool = False
    documents: list[int] = field(default_factory=list)


def lay_out(examples: Sequence[Regions], forward: bool, dense: bool) -> Row:
    """Return examples side by side.

    Args:
        examples: only the first may have a source, unless all is read forward.
        forward: whether the model reads a source only forward (the causal families).
        dense: whether it learns the source's words too, which only a forward reader can.
    """
    regions: list[_Region] = []
    for number, example in enumerate(examples, start=1):
        words = example.source_words & (forward and dense)
        if forward:
            both, learnt = np.r_[example.source, example.target], np.r_[words, example.learnt]
            regions.append(_Region(both, learnt, 0, 0, number))
        else:
            # Only the example with a source lives in its trunk's block: the others, in block 0, see nothing of it.
            start, block = len(example.source), int(len(example.source) > 0)
            regions.append(_Region(example.source, words, 0, block, 0))
            regions.append(_Region(example.target, example.learnt, start, block, number))
    ids, positions, blocks, branches, labels = (
        np.concatenate(columns) for columns in zip(*(region.columns() for region in regions), strict=True)
    )
    return Row(TokenizedLayout(ids, positions, blocks, branches, np.zeros_like(ids)), labels)


@dataclass(frozen=True)
class _Region:
    """Consecutive tokens of one branch (or of the trunk), and which of them are predicted."""

    ids: Ids
    learnt: NDArray[np.bool_]
    start: int
    block: int
    branch: int

    def columns(self) -> tuple[Ids, Ids, Ids, Ids, NDArray[np.int64]]:
        """Return ids, positions, blocks, branches, and each token's label: the one after it, if that is predicted."""
        count, labels = len(self.ids), np.full(len(self.ids), NOTHING, dtype=np.int64)
        labels[:-1] = np.where(self.learnt[1:], self.ids[1:], NOTHING)
        places = (np.arange(count) + self.start, np.full(count, self.block), np.full(count, self.branch))
        positions, blocks, branches = (place.astype(np.int32) for place in places)
        return self.ids, positions, blocks, branches, labels
