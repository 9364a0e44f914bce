"""Training windows over behaviour: which stretch of a user's events is read in one pass. Knows no text and no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Histories

# Bucket 0 is "unknown"; bucket b holds gaps of about 2^(b-1) minutes, the last one everything longer.
NUM_GAPS = 24


@dataclass(frozen=True)
class Window:
    """A stretch of one user's events, in time order.

    Args:
        user: whose.
        segments: ``[length]`` int64 segment numbers of the events (an item id, or an item-less event's text).
        verbs: ``[length]`` int64, 0 = unknown, else 1 + the verb's number.
        gaps: ``[length]`` int64 bucket of the time since the event before.
        events: ``[length]`` int64 event numbers in the histories.
        first_target: targets before this place in the window belong to another window.
    """

    user: int
    segments: NDArray[np.int64]
    verbs: NDArray[np.int64]
    gaps: NDArray[np.int64]
    events: NDArray[np.int64]
    first_target: int = 1

    def __len__(self) -> int:
        return len(self.segments)


class Windows(Sequence[Window]):
    """Every user's events cut into windows; each event is a target in exactly one of them.

    Nothing is copied until a window is asked for, so that a memory-mapped log stays on disk.

    Args:
        histories: what may be read and predicted.
        segments: ``[num_events]`` segment number of each event.
        size: longest window in events.
        context: events repeated from the window before as context; at most ``size // 2`` is sensible.
        minimum: users with fewer events give no window.
    """

    def __init__(
        self, histories: Histories, segments: NDArray[np.int64], size: int, context: int = 0, minimum: int = 2
    ) -> None:
        self.histories, self.segments = histories, segments
        starts, stops, firsts = _cut(histories.offsets, size, context, minimum)
        self._starts, self._stops, self._firsts = starts, stops, firsts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        start, stop = int(self._starts[index]), int(self._stops[index])
        user = int(np.searchsorted(self.histories.offsets, start, side="right") - 1)
        return window(self.histories, self.segments, user, start, stop, int(self._firsts[index]))

    def lengths(self) -> NDArray[np.int64]:
        """Return each window's number of events."""
        return self._stops - self._starts


def window(
    histories: Histories, segments: NDArray[np.int64], user: int, start: int, stop: int, first_target: int = 1
) -> Window:
    """Return events ``start:stop`` of ``user`` as a window; the first gap looks back beyond it."""
    begin = int(histories.offsets[user])
    return Window(
        user=user,
        segments=np.asarray(segments[start:stop], dtype=np.int64),
        verbs=verb_numbers(histories, start, stop),
        gaps=gap_buckets(None if histories.times is None else histories.times[begin:stop])[start - begin :]
        if histories.times is not None
        else np.zeros(stop - start, dtype=np.int64),
        events=np.arange(start, stop),
        first_target=first_target,
    )


def verb_numbers(histories: Histories, start: int, stop: int) -> NDArray[np.int64]:
    """Return 1 + verb number of events ``start:stop``, 0 where the log has no verbs."""
    if histories.verbs is None:
        return np.zeros(stop - start, dtype=np.int64)
    return histories.verbs[start:stop].astype(np.int64) + 1


def gap_buckets(times: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the bucket of the time since the event before; 0 for the first event.

    >>> gap_buckets(np.array([0, 0, 60, 7260])).tolist()
    [0, 1, 2, 7]
    """
    if times is None or len(times) == 0:
        return np.zeros(0, dtype=np.int64)
    minutes = np.maximum(np.diff(times), 0) / 60.0
    buckets = 1 + np.floor(np.log2(minutes + 1)).astype(np.int64)
    return np.concatenate([[0], np.minimum(buckets, NUM_GAPS - 1)])


def _cut(
    offsets: NDArray[np.int64], size: int, context: int, minimum: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return starts, stops and first targets; windows end at each user's last event and step back by what is new."""
    step = size - 1 - context
    starts, stops, firsts = [], [], []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if end - begin < minimum:
            continue
        stop = end
        while True:
            start = max(begin, stop - size)
            starts.append(start)
            stops.append(stop)
            firsts.append(1 if start == begin else 1 + context)
            if start == begin:
                break
            stop -= step
    as_array = [np.asarray(values, dtype=np.int64) for values in (starts, stops, firsts)]
    return as_array[0], as_array[1], as_array[2]
