"""A tree as the two graphs of a late-interacting run take it: its segments, and where their states stand together.

The same cut as :mod:`m6rec.late_interaction.segments` makes of a batch, of one tree and without torch (held against it
in the tests). Knows no graph.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import BackboneError
from m6rec.late_interaction.cache import SegmentCache, States, segment_key
from m6rec.text.tokenize import TokenizedLayout

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Cut:
    """The segments of a tree.

    Args:
        words: token ids of each.
        targets: whether each is read forward, in a branch.
        path: ``[tokens]`` index of each token's segment on the way from the first one to the end of its branch.
    """

    words: list[NDArray[np.int32]]
    targets: list[bool]
    path: NDArray[np.int64]


def cut(tree: TokenizedLayout) -> Cut:
    """Return the segments of ``tree``, in their order."""
    new_branch = _changes(tree.branches)
    starts = _changes(tree.segments) | new_branch
    count, in_trunk = starts.cumsum(), tree.branches == 0
    # A branch goes on from the trunk segments that it sees.
    seen = np.searchsorted(np.sort(tree.blocks[starts & in_trunk]), tree.blocks, side="right")
    begin = np.maximum.accumulate(np.where(new_branch, count, 0))
    places = np.flatnonzero(starts)
    return Cut(
        words=np.split(tree.ids, places[1:]),
        targets=(tree.branches[places] > 0).tolist(),
        path=np.where(in_trunk, count - 1, seen + count - begin).astype(np.int64),
    )


class SplitFeed:
    """Turns trees into the upper graph's inputs, reading what is not kept.

    Args:
        read: the lower graph: ``ids``, ``keep``, ``targets`` -> ``[segments, width, hidden]``.
        cache: of what it gave.
        lead: ids of the virtual tokens that are read before every text.
        max_segments: longest way that the upper graph knows indices for.
    """

    def __init__(
        self, read: Callable[[Inputs], States], cache: SegmentCache, lead: Sequence[int], max_segments: int
    ) -> None:
        self._read, self._cache, self._max_segments = read, cache, max_segments
        self._lead = np.asarray(lead, np.int32)

    def __call__(self, tree: TokenizedLayout) -> dict[str, NDArray[Any]]:
        """Return ``states``, ``path``, ``positions``, ``blocks`` and ``branches`` of a tree, virtual tokens included.

        Raises:
            BackboneError: the tree has a longer way than there are indices.
        """
        whole = self._with_lead(tree)
        segments = cut(whole)
        longest = int(segments.path.max()) + 1
        if longest > self._max_segments:
            raise BackboneError(
                f"got {longest} segments on the way to a candidate, expected at most {self._max_segments}; show fewer "
                "events, or train with a larger late_interaction.max_segments"
            )
        rows = {name: getattr(whole, name)[None].astype(np.int64) for name in ("positions", "blocks", "branches")}
        states = np.concatenate(self._states(segments)).astype(np.float32, copy=False)
        return {"states": states[None], "path": segments.path[None], **rows}

    def _with_lead(self, tree: TokenizedLayout) -> TokenizedLayout:
        number = len(self._lead)
        if not number:
            return tree
        zeros = np.zeros(number, np.int32)
        return TokenizedLayout(
            ids=np.concatenate([self._lead, tree.ids]),
            positions=np.concatenate([np.arange(number, dtype=np.int32), tree.positions + number]),
            blocks=np.concatenate([zeros, tree.blocks]),
            branches=np.concatenate([zeros, tree.branches]),
            segments=np.concatenate([zeros, tree.segments + 1]),
        )

    def _states(self, segments: Cut) -> list[States]:
        """Return the lower states of each segment: kept ones, or read now and kept."""
        keys = [segment_key(words, target) for words, target in zip(segments.words, segments.targets, strict=True)]
        known = zip(keys, self._cache.get_many(keys), strict=True)
        found = {key: states for key, states in known if states is not None}
        missing = {key: place for place, key in enumerate(keys) if key not in found}
        fresh: dict[bytes, States] = {}
        for group in _of_like_length(list(missing.values()), segments.words):
            read = self._read(
                lower_inputs([segments.words[row] for row in group], [segments.targets[row] for row in group])
            )
            fresh |= {keys[row]: states[: len(segments.words[row])] for row, states in zip(group, read, strict=True)}
        found |= self._cache.put_many(fresh) if fresh else {}
        return [found[key] for key in keys]


def lower_inputs(words: Sequence[NDArray[np.int32]], targets: Sequence[bool]) -> dict[str, NDArray[Any]]:
    """Return segments as the lower graph's inputs: ``ids`` and ``keep`` ``[segments, width]``, ``targets``."""
    lengths = np.array([len(ids) for ids in words])
    keep = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(keep.shape, np.int64)
    ids[keep] = np.concatenate(words)
    return {"ids": ids, "keep": keep, "targets": np.array(targets, np.int64)}


def _of_like_length(rows: Sequence[int], words: Sequence[NDArray[np.int32]]) -> list[list[int]]:
    """Group rows whose lengths are within a factor of two, so that little of a pass is padding."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault((len(words[row]) - 1).bit_length(), []).append(row)
    return list(groups.values())


def _changes(numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return where a number is another than before."""
    return np.append(True, numbers[1:] != numbers[:-1])
