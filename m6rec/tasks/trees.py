"""Trees over stretches of users' histories, and how they are kept: tokenised once, then mapped from disk.

Knows no task and no words.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Judgements
from m6rec.text.tokenize import TokenizedLayout

if TYPE_CHECKING:
    import datasets

ARRAYS = ("ids", "positions", "blocks", "branches", "segments")


@dataclass(frozen=True)
class Slate:
    """A stretch of one user's events, and the pairs that are judged along it.

    Args:
        user: whose.
        start: first event of the trunk.
        stop: end of the trunk.
        pairs: ``[num_branches]`` numbers of the pairs.
    """

    user: int
    start: int
    stop: int
    pairs: NDArray[np.int64]


def slates(pairs: Judgements, max_events: int, max_branches: int) -> list[Slate]:
    """Group pairs so that every one sees at least its last ``max_events // 2`` events, and each stands in one slate.

    Pairs of different scenes never share a slate.

    Args:
        pairs: labelled pairs.
        max_events: longest trunk in events.
        max_branches: most pairs a slate; memory only.
    """
    scenes = np.zeros(len(pairs), dtype=np.int64) if pairs.scenes is None else pairs.scenes.astype(np.int64)
    order = np.lexsort((pairs.lengths, scenes, pairs.users))
    step = max(1, max_events - max_events // 2)
    # Pairs of one user (and scene) whose visible histories end in the same stretch of `step` events share a trunk.
    stretch = np.maximum(0, np.ceil((pairs.lengths[order] - max_events) / step)).astype(np.int64)
    keys = np.stack([pairs.users[order].astype(np.int64), scenes[order], stretch])
    cuts = np.flatnonzero(np.any(np.diff(keys, axis=1) != 0, axis=0)) + 1
    result = []
    for group in np.split(order, cuts) if len(order) else []:
        user, longest = int(pairs.users[group[0]]), int(pairs.lengths[group].max())
        begin = int(pairs.history.offsets[user])
        for first in range(0, len(group), max_branches):
            result.append(
                Slate(user, begin + max(0, longest - max_events), begin + longest, group[first : first + max_branches])
            )
    return result


def write_trees(
    folder: Path, trees: Iterator[TokenizedLayout], extra: Iterator[dict[str, Any]], key: Mapping[str, Any]
) -> "datasets.Dataset":
    """Return trees as a memory-mapped dataset, written once under a name made from ``key``.

    Args:
        folder: where caches lie.
        trees: made only when the file is not there.
        extra: further columns of each row.
        key: everything that the content depends on.
    """
    import datasets  # with pandas behind it a fifth of what a server's start would load, and it never trains

    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True, default=str).encode()).hexdigest()[:24]
    path = folder / f"trees-{name}.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{np.random.default_rng().integers(1 << 62):x}.part")
        with datasets.arrow_writer.ArrowWriter(path=str(half)) as writer:
            for tree, columns in zip(trees, extra, strict=True):
                writer.write({**{array: getattr(tree, array).tolist() for array in ARRAYS}, **columns})
            writer.finalize()
        half.replace(path)
    return datasets.Dataset.from_file(str(path))


def read_tree(row: Mapping[str, Any]) -> TokenizedLayout:
    """Return one cached row as a tree."""
    ids, positions, blocks, branches, segments = (np.asarray(row[array], dtype=np.int32) for array in ARRAYS)
    return TokenizedLayout(ids, positions, blocks, branches, segments)
