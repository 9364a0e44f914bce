"""Histories as padded rows of item ids, and training windows of them. It knows no network."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from m6rec.baselines.sparse import recent_events
from m6rec.data.histories import Histories

Rows = NDArray[np.int64]


def recent_rows(history: Histories, users: NDArray[np.integer], last: int) -> Rows:
    """Return ``[n, length]`` the users' latest items, oldest first, padded on the right with ``-1``.

    ``length`` is that of the longest, and at least 1.
    """
    places, events, _ = recent_events(history, users, last)
    return padded(places, history.items[events], len(users))


def padded(places: NDArray[np.int64], items: NDArray[np.integer], count: int) -> Rows:
    """Return ``[count, length]`` the items of each place in order, padded on the right with ``-1``.

    >>> padded(np.array([0, 0, 2]), np.array([5, 6, 7]), 3).tolist()
    [[5, 6], [-1, -1], [7, -1]]
    """
    lengths = np.bincount(places, minlength=count)
    rows = np.full((count, max(1, lengths.max(initial=0))), -1, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    rows[places, np.arange(len(places)) - starts[places]] = items
    return rows


def training_windows(train: Histories, length: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Rows]:
    """Cut every user's items into windows, so that each item but the first is a target once.

    A long history is cut at places drawn anew by every call; a window shares its first item with the last of the one
    before it.

    Args:
        train: training events.
        length: inputs per window; a window holds one item more, the last target.
        rng: draws the cuts.

    Returns:
        ``[w]`` first event and ``[w]`` end event of each window, numbering the events that have an item.
    """
    real = train.select(train.items >= 0)
    starts, ends = [], []
    for begin, end in zip(real.offsets[:-1].tolist(), real.offsets[1:].tolist(), strict=True):
        if end - begin < 2:
            continue
        first = end - begin - 1
        head = first if first <= length else int(rng.integers(1, length + 1))
        cuts = np.r_[begin, np.arange(begin + head, end - 1, length), end - 1]
        starts.append(cuts[:-1])
        ends.append(cuts[1:] + 1)
    return (np.concatenate(starts), np.concatenate(ends)) if starts else (np.empty(0, np.int64), np.empty(0, np.int64))


def window_batches(
    train: Histories, length: int, batch_tokens: int, rng: np.random.Generator
) -> Iterator[tuple[Rows, Rows]]:
    """Yield (inputs, targets) batches of windows of like length, in random order.

    Args:
        train: training events.
        length: inputs per window.
        batch_tokens: inputs per batch, padding included.
        rng: draws cuts and order.

    Yields:
        ``[batch, length]`` inputs and the item after each; ``-1`` = padding in both.
    """
    items = train.items[train.items >= 0]
    starts, ends = training_windows(train, length, rng)
    inputs = ends - starts - 1
    order = np.lexsort((rng.random(len(inputs)), inputs))
    batches: list[list[int]] = [[]]
    for window in order.tolist():
        if batches[-1] and (len(batches[-1]) + 1) * inputs[window] > batch_tokens:
            batches.append([])
        batches[-1].append(window)
    for number in rng.permutation(len(batches)) if len(inputs) else []:
        chosen = np.array(batches[number])
        places = np.repeat(np.arange(len(chosen)), inputs[chosen])
        events = np.concatenate([np.arange(starts[w], ends[w] - 1) for w in chosen])
        yield padded(places, items[events], len(chosen)), padded(places, items[events + 1], len(chosen))
