"""Making a layout fit: which events go, and which tails are cut. This module knows lengths, not words."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import ConfigError
from m6rec.text.segments import Layout

Lengths = NDArray[np.int64]


def fit(layout: Layout, lengths: Sequence[int], max_tokens: int) -> tuple[Lengths, int]:
    """Return how many tokens of each segment may stay, and how many events had to go.

    The length of a layout is that of its longest path: the trunk up to where a branch hangs, and the branch. Whole
    events go first, the oldest first; then the longest text of a path that is still too long loses its tail.

    Args:
        layout: its segments carry the order of sacrifice.
        lengths: ``[segments]`` tokens of each of ``layout.segments``.
        max_tokens: the longest path that is allowed.

    Raises:
        ConfigError: the control tokens alone are longer.
    """
    kept = np.asarray(lengths, dtype=np.int64).copy()
    paths = _paths(layout)
    order = np.array([-1 if segment.sacrifice is None else segment.sacrifice for segment in layout.segments])
    dropped = 0
    for turn in np.unique(order[order >= 0]):
        if _longest(kept, paths)[0] <= max_tokens:
            break
        kept[order == turn] = 0
        dropped += 1
    words = np.array([segment.role != "control" for segment in layout.segments], dtype=bool)
    while (length := _longest(kept, paths)[0]) > max_tokens:
        _cut(kept, paths[_longest(kept, paths)[1]] & words, length - max_tokens, max_tokens)
    return kept, dropped


def _paths(layout: Layout) -> NDArray[np.bool_]:
    """Return ``[paths, segments]`` bool: the trunk alone, then each branch behind the trunk that it sees."""
    size, blocks = len(layout.trunk), np.array([segment.block for segment in layout.trunk])
    paths = np.zeros((1 + len(layout.branches), len(layout.segments)), dtype=bool)
    paths[0, :size] = True
    start = size
    for row, branch in enumerate(layout.branches, start=1):
        if branch and size:
            seen = np.flatnonzero(blocks <= branch[0].block)
            paths[row, : seen[-1] + 1 if len(seen) else 0] = True
        paths[row, start : start + len(branch)] = True
        start += len(branch)
    return paths


def _longest(kept: Lengths, paths: NDArray[np.bool_]) -> tuple[int, int]:
    totals = paths @ kept
    longest = int(totals.argmax())
    return int(totals[longest]), longest


def _cut(kept: Lengths, words: NDArray[np.bool_], excess: int, max_tokens: int) -> None:
    """Shorten the longest of ``words``, at most down to the second longest."""
    lengths = np.where(words, kept, 0)
    longest = int(lengths.argmax())
    if lengths[longest] == 0:
        least = max_tokens + excess
        raise ConfigError(f"got max_tokens={max_tokens}, expected at least {least}: the control tokens alone need them")
    second = int(np.partition(lengths, -2)[-2]) if len(lengths) > 1 else 0
    kept[longest] -= min(excess, max(1, int(lengths[longest]) - second))
