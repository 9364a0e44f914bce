"""Many documents in one row, none of which sees another: each is a branch of a tree without a trunk.

A model that reads forward reads source and target alike, so a whole example is one branch. A prefix-LM or an
encoder-decoder reads the source in the trunk; a row then has one example with a source, whose tokens are a block that
the other branches do not see. Knows no text, no model and no loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m6rec.tasks.objectives import Regions
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
    columns: list[list[Ids]] = [[], [], [], [], []]
    for number, example in enumerate(examples, start=1):
        regions = (np.r_[example.source, example.target],) if forward else (example.source, example.target)
        words = example.source_words & (forward and dense)
        learnt = (np.r_[words, example.learnt],) if forward else (words, example.learnt)
        start = 0
        for ids, wanted, is_last in zip(regions, learnt, (True,) if forward else (False, True), strict=True):
            # Only the example with a source lives in its trunk's block: the rest, in block 0, see nothing of it.
            block = int(not forward and len(example.source) > 0)
            branch = number if is_last else 0
            _extend(columns, ids, start, block, branch, wanted)
            start += len(ids)
    ids, positions, blocks, branches, labels = (np.concatenate(column) for column in columns)
    return Row(TokenizedLayout(ids, positions, blocks, branches, np.zeros_like(ids)), labels.astype(np.int64))


def _extend(columns: list[list[Ids]], ids: Ids, start: int, block: int, branch: int, learnt: NDArray[np.bool_]) -> None:
    """Add one region to the columns; each token's label is the one after it."""
    following = np.r_[ids[1:], NOTHING] if len(ids) else ids
    wanted = np.r_[learnt[1:], False] if len(ids) else learnt
    values = (ids, start + np.arange(len(ids)), np.full(len(ids), block), np.full(len(ids), branch))
    for column, value in zip(columns, (*values, np.where(wanted, following, NOTHING)), strict=True):
        column.append(value.astype(np.int32))
