"""Behaviour as arrays: every user's events in time order, and what is held out of them.

The one interchange type between data, baselines, tasks and evaluation. It knows no text, no model and no file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m6rec.errors import DataError

Split = Literal["train", "valid", "test"]
SPLIT_CODES: dict[str, int] = {"train": 0, "valid": 1, "test": 2}
NO_TIME = np.iinfo(np.int64).max
"""Time of a pair whose moment nobody has written down: after everything."""


@dataclass(frozen=True)
class Histories:
    """Events of all users, grouped by user and ordered in time (compressed rows).

    Args:
        offsets: ``[num_users + 1]`` int64; user ``u`` owns events ``offsets[u]:offsets[u + 1]``.
        items: ``[num_events]`` int32 item ids; ``-1`` for an event without an item (a search).
        splits: ``[num_events]`` int8: 0 train, 1 valid, 2 test; never falls inside one user's events.
        num_items: size of the catalogue.
        times: ``[num_events]`` int64 Unix seconds, or ``None`` where only the order is known.
        values: ``[num_events]`` float32 (rating, weight), NaN where absent; ``None`` where no event has one.
        verbs: ``[num_events]`` int16 indices into ``verb_names``.
        verb_names: the verbs of the log, e.g. ``("click", "buy")``.
        rows: ``[num_events]`` int64 row numbers in ``interactions.parquet`` (for the text of a search).
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    splits: NDArray[np.int8]
    num_items: int
    times: NDArray[np.int64] | None = None
    values: NDArray[np.float32] | None = None
    verbs: NDArray[np.int16] | None = None
    verb_names: tuple[str, ...] = ()
    rows: NDArray[np.int64] | None = None

    @property
    def num_users(self) -> int:
        """Number of users, those without events included."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.items)

    @property
    def users(self) -> NDArray[np.int32]:
        """``[num_events]`` the user of each event."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.offsets))

    def of(self, user: int) -> slice:
        """Return the slice of events that ``user`` owns."""
        return slice(int(self.offsets[user]), int(self.offsets[user + 1]))

    def events_of(self, users: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return all events of several users at once.

        Args:
            users: ``[n]`` user ids, in any order, repeats allowed.

        Returns:
            ``[m]`` the place in ``users`` that each event belongs to (ascending); ``[m]`` the event's number, in the
            user's order.
        """
        starts, counts = self.offsets[users], self.offsets[np.asarray(users, np.int64) + 1] - self.offsets[users]
        places = np.repeat(np.arange(len(users)), counts)
        return places, np.arange(len(places)) + np.repeat(starts - np.cumsum(counts) + counts, counts)

    def select(self, keep: NDArray[np.bool_]) -> "Histories":
        """Return the events where ``keep`` (``[num_events]`` bool) holds; users keep their numbers."""
        kept = np.zeros(self.num_events + 1, dtype=np.int64)
        np.cumsum(keep, out=kept[1:])

        def pick(column: NDArray | None) -> NDArray | None:  # type: ignore[type-arg]
            return None if column is None else column[keep]

        return replace(
            self,
            offsets=kept[self.offsets],
            items=self.items[keep],
            splits=self.splits[keep],
            times=pick(self.times),
            values=pick(self.values),
            verbs=pick(self.verbs),
            rows=pick(self.rows),
        )

    def before(self, split: Split) -> "Histories":
        """Return what may be known when ``split`` is predicted: the events of all earlier splits.

        ``before("train")`` and ``before("valid")`` are the training events; ``before("test")`` adds the validation
        ones.
        """
        return self.select(self.splits < max(1, SPLIT_CODES[split]))

    def judged(self, split: Split, labels: NDArray[np.float32]) -> "Judgements":
        """Return each event of ``split`` with an item and a label as a pair that sees the user's events before it.

        A held-out pair sees the earlier splits' events, never another held-out one.

        Args:
            split: whose events.
            labels: ``[num_events]`` 0 or 1, NaN where there is none.
        """
        chosen = np.flatnonzero((self.splits == SPLIT_CODES[split]) & (self.items >= 0) & ~np.isnan(labels))
        history, users = self.before(split), self.users[chosen]
        # Splits never go back within a user, so the events of earlier splits are the first ones.
        lengths = np.minimum(chosen - self.offsets[users], np.diff(history.offsets)[users])
        return Judgements(
            history,
            users,
            self.items[chosen],
            labels[chosen],
            lengths,
            times=None if self.times is None else self.times[chosen],
            rows=None if self.rows is None else self.rows[chosen],
        )

    def queries(self, split: Split) -> "Queries":
        """Return one question per user with held-out events of ``split``: what comes next?

        A user's history is every earlier split's events, never another held-out event; a user without history keeps
        an empty one (a new user). Events without an item are no targets.

        Raises:
            DataError: ``split`` is ``"train"``.
        """
        if split == "train":
            raise DataError("got split 'train', expected 'valid' or 'test': training events are not held out")
        code = SPLIT_CODES[split]
        held_out = self.select((self.splits == code) & (self.items >= 0))
        counts = np.diff(held_out.offsets)
        users = np.flatnonzero(counts).astype(np.int32)
        first = held_out.offsets[users]
        return Queries(
            history=self.before(split),
            users=users,
            target_offsets=np.concatenate([[0], np.cumsum(counts[users])]).astype(np.int64),
            targets=held_out.items,
            target_values=held_out.values,
            times=None if held_out.times is None else held_out.times[first],
            rows=None if held_out.rows is None else held_out.rows[first],
        )


@dataclass(frozen=True)
class Queries:
    """Questions to a recommender: for each of ``users``, given ``history``, which items come next?

    Args:
        history: what may be known; indexed by user.
        users: ``[num_queries]`` int32 user of each query.
        target_offsets: ``[num_queries + 1]`` int64.
        targets: ``[num_targets]`` int32 held-out items; query ``q`` owns ``target_offsets[q]:target_offsets[q + 1]``.
        target_values: ``[num_targets]`` float32 or ``None``.
        times: ``[num_queries]`` int64 Unix seconds of each query's first target; ``None`` = none is known.
        rows: ``[num_queries]`` int64 the event of that target, as :attr:`Histories.rows`; ``None`` = none is known.
    """

    history: Histories
    users: NDArray[np.int32]
    target_offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    target_values: NDArray[np.float32] | None = None
    times: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def targets_of(self, query: int) -> NDArray[np.int32]:
        """Return the held-out items of one query."""
        return self.targets[self.target_offsets[query] : self.target_offsets[query + 1]]

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Yield query numbers in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield np.arange(start, min(start + size, len(self)))

    def take(self, which: NDArray[np.int64]) -> "Queries":
        """Return the queries numbered ``which``, in that order."""
        counts = np.diff(self.target_offsets)[which]
        ends = np.cumsum(counts)
        # Places of the chosen targets: each query's first target, then on from there.
        places = np.repeat(self.target_offsets[:-1][which] - (ends - counts), counts) + np.arange(counts.sum())
        return replace(
            self,
            users=self.users[which],
            target_offsets=np.concatenate([[0], ends]).astype(np.int64),
            targets=self.targets[places],
            target_values=None if self.target_values is None else self.target_values[places],
            times=None if self.times is None else self.times[which],
            rows=None if self.rows is None else self.rows[which],
        )


@dataclass(frozen=True)
class Judgements:
    """Labelled (user, item) pairs for ranking: shown this, at this point of the user's history, was it a yes?

    Args:
        history: what may be known; indexed by user.
        users: ``[num_pairs]`` int32.
        items: ``[num_pairs]`` int32.
        labels: ``[num_pairs]`` float32, 0 or 1.
        lengths: ``[num_pairs]`` int64: how many of the user's events in ``history`` come before the pair and may
            be seen.
        times: ``[num_pairs]`` int64 Unix seconds of the moment that each was judged at, or ``NO_TIME``; ``None`` = none
            is known.
        rows: ``[num_pairs]`` int64 the event behind each, as :attr:`Histories.rows`; ``None`` = none (impressions).
        scenes: ``[num_pairs]`` int16 the scene of each (:mod:`m6rec.data.scenes`); ``None`` = all of one.
    """

    history: Histories
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    labels: NDArray[np.float32]
    lengths: NDArray[np.int64]
    times: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None
    scenes: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: NDArray[np.integer]) -> "Judgements":
        """Return the pairs numbered ``which``, in that order."""
        columns = {name: column for name, column in vars(self).items() if name != "history" and column is not None}
        return replace(self, **{name: column[which] for name, column in columns.items()})
