"""Second pass of prepare: number, order, split and write what the first pass gathered, one bucket at a time.

This module knows ids and splits; it knows no source, no filter and no manifest.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m6rec.data import schema, split
from m6rec.data.buckets import Buckets, bucket_of
from m6rec.data.gather import Gathered, Records
from m6rec.data.keys import Keys, digest, mix
from m6rec.data.tables import TableFile
from m6rec.errors import DataError

Ties = Literal["random", "file"]
NEVER = np.iinfo(np.int64).max
UNKNOWN_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Plan:
    """How events are ordered and held out.

    Args:
        rule: split rule.
        shares: shares of train, valid and test.
        cutoffs: Unix seconds at which validation and test begin (temporal), else ``None``.
        ties: order of a user's events of one second.
        seed: seed of random ties.
        session_gap_s: silence that ends a session, or ``None``.
    """

    rule: split.Rule
    shares: tuple[float, float, float]
    cutoffs: tuple[int, int] | None
    ties: Ties
    seed: int
    session_gap_s: int | None


@dataclass
class HeldOut:
    """What the events say of other rows about the same users: when validation and test begin, and which pairs are out.

    Args:
        begins: ``[2, num_users]`` Unix seconds of each user's first validation (row 0) and test (row 1) event.
        pairs: sorted ``user * num_items + item`` of held-out events, and their codes, after :meth:`close`.
    """

    begins: NDArray[np.int64]
    num_items: int
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    codes: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    _seen: list[tuple[NDArray[np.int64], NDArray[np.int8]]] = field(default_factory=list)

    def see(
        self, user: NDArray[np.int32], item: NDArray[np.int32], time: NDArray[np.int64], codes: NDArray[np.int8]
    ) -> None:
        """Take note of a bucket's events."""
        for row, code in enumerate((1, 2)):
            out = (codes >= code) & (time != UNKNOWN_TIME)
            np.minimum.at(self.begins[row], user[out], time[out])
        out = (codes > 0) & (item >= 0)
        self._seen.append((user[out].astype(np.int64) * self.num_items + item[out], codes[out]))

    def close(self) -> None:
        """Sort the pairs; a pair that is held out twice counts as its later part."""
        pairs = np.concatenate([pairs for pairs, _ in self._seen] or [self.pairs])
        codes = np.concatenate([codes for _, codes in self._seen] or [self.codes])
        order = np.lexsort((-codes, pairs))
        self.pairs, first = np.unique(pairs[order], return_index=True)
        self.codes = codes[order][first]
        self._seen = []

    def of_times(self, user: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return the split of rows at ``time`` about ``user``: not before anything that is held out begins."""
        return ((time >= self.begins[0][user]).astype(np.int8) + (time >= self.begins[1][user])).astype(np.int8)

    def of_pairs(self, user: NDArray[np.int32], item: NDArray[np.int32]) -> NDArray[np.int8]:
        """Return the split of the held-out event of each pair, 0 where it is not held out."""
        if not len(self.pairs):
            return np.zeros(len(user), np.int8)
        wanted = user.astype(np.int64) * self.num_items + item
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[place] == wanted, self.codes[place], 0).astype(np.int8)


@dataclass(frozen=True)
class Ids:
    """The id of every code of a user and of an item, ``-1`` where it was filtered away; one more ``-1`` for "none"."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]

    @classmethod
    def of(cls, gathered: Gathered, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> "Ids":
        """Number the kept users and items."""
        return cls(np.r_[gathered.users.ids(users), np.int32(-1)], np.r_[gathered.items.ids(items), np.int32(-1)])

    @property
    def num_users(self) -> int:
        """Number of kept users."""
        return int(self.users.max()) + 1

    @property
    def num_items(self) -> int:
        """Number of kept items."""
        return int(self.items.max()) + 1

    def renumber(self, table: pa.Table) -> tuple[pa.Table, NDArray[np.int32], NDArray[np.int32]]:
        """Return the rows whose user and item are kept, with their ids; a row without an item keeps ``-1``."""
        codes = table["item"].to_numpy()
        users, items = self.users[table["user"].to_numpy()], self.items[codes]
        keep = (users >= 0) & ((items >= 0) | (codes < 0))
        return table.filter(pa.array(keep)), users[keep], items[keep]


def write_records(path: Path, shape: pa.Schema, records: Records, ids: NDArray[np.int32]) -> TableFile:
    """Write ``items.parquet`` or ``users.parquet``: row ``i`` is id ``i``, keys without a record included."""
    codes = np.flatnonzero(ids[:-1] >= 0)
    codes = codes[np.argsort(ids[codes])]
    numbers = bucket_of(records.keys.digests[codes])
    names = records.keys.names()
    with TableFile(path, shape) as out:
        for number in np.unique(numbers):
            ours = codes[numbers == number]
            out.write(_described(names.take(pa.array(ours)), ours, records.buckets.read(int(number)), shape))
    return out


def _described(keys: pa.Array, codes: NDArray[np.int64], records: pa.Table | None, shape: pa.Schema) -> pa.Table:
    if records is None:
        columns = {name: pa.nulls(len(keys), shape.field(name).type) for name in shape.names}
    else:
        recorded = records["code"].to_numpy()
        order = np.argsort(recorded)
        place = np.minimum(np.searchsorted(recorded, codes, sorter=order), len(order) - 1)
        rows = pa.array(order[place], mask=recorded[order[place]] != codes)
        columns = {name: records[name].take(rows) for name in shape.names if name != "key"}
    columns["key"] = keys
    if "title" in columns:
        columns["title"] = _titled(columns)
    return pa.table({name: columns[name] for name in shape.names})


def _titled(columns: dict[str, pa.Array]) -> pa.Array:
    """Return the titles; an item without any text is called by its key, which is all that is known of it."""
    silent = np.logical_and.reduce([np.asarray(columns[name].is_null()) for name in schema.ITEM_TEXTS])
    return pc.if_else(pa.array(silent), columns["key"], columns["title"])


@dataclass(frozen=True)
class Settled:
    """What became of the events.

    Args:
        file: ``interactions.parquet``.
        held_out: what is held out of other tables.
        by_user: ``[3, num_users]`` events of items by split.
        num_tied: events that share user and second with another, so that only the tie rule orders them.
    """

    file: TableFile
    held_out: HeldOut
    by_user: NDArray[np.int64]
    num_tied: int


def write_events(path: Path, gathered: Gathered, ids: Ids, plan: Plan) -> Settled:
    """Write ``interactions.parquet``, sorted by user and order."""
    begins = np.full((2, ids.num_users), NEVER, np.int64)
    held_out, counts, num_tied = HeldOut(begins, ids.num_items), np.zeros((3, ids.num_users), np.int64), 0
    shape = schema.INTERACTIONS if plan.session_gap_s is None else schema.INTERACTIONS.append(schema.SESSION)
    with TableFile(path, shape) as out:
        for bucket in gathered.events.tables():
            table, users, items = ids.renumber(bucket)
            if not len(table):
                continue
            order = _order(table, users, gathered, plan)
            table, users, items = table.take(pa.array(order)), users[order], items[order]
            times = table["time"].fill_null(UNKNOWN_TIME).to_numpy()
            codes = _codes(table, users, items, times, plan)
            held_out.see(users, items, times, codes)
            num_tied += _count_tied(users, times)
            first, last = int(users[0]), int(users[-1])  # a bucket's users are neighbours
            for code in range(3):
                ours = users[(codes == code) & (items >= 0)] - first
                counts[code, first : last + 1] += np.bincount(ours, minlength=last + 1 - first)
            columns = {name: table[name] for name in table.column_names}
            columns |= {"user": users, "item": items, "split": codes}
            if plan.session_gap_s is not None:
                columns["session"] = _sessions(users, times, plan.session_gap_s)
            out.write(pa.table(columns))
    held_out.close()
    if plan.cutoffs:
        begins[:] = np.asarray(plan.cutoffs)[:, None]
    return Settled(out, held_out, counts, num_tied)


def _count_tied(users: NDArray[np.int32], times: NDArray[np.int64]) -> int:
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (times[1:] != UNKNOWN_TIME)
    return int((np.r_[tied, False] | np.r_[False, tied]).sum())


def _order(table: pa.Table, users: NDArray[np.int32], gathered: Gathered, plan: Plan) -> NDArray[np.int64]:
    """Return the rows sorted by user and time; events without a time come first, in the order of the file."""
    times = table["time"].fill_null(UNKNOWN_TIME).to_numpy()
    keys = [times, users]
    if plan.ties == "random":
        keys.insert(0, np.where(times == UNKNOWN_TIME, np.uint64(0), _tie_keys(table, times, gathered, plan.seed)))
    if plan.rule == "given":
        keys.insert(-1, table["split"].fill_null(0).to_numpy())
    return np.lexsort(keys)


def _tie_keys(table: pa.Table, times: NDArray[np.int64], gathered: Gathered, seed: int) -> NDArray[np.uint64]:
    """Return a random number for each event, drawn from what it is and not from where it stands in the file."""
    user_digests = gathered.users.digests
    item_digests = np.r_[gathered.items.digests, np.uint64(0)]
    drawn = np.full(len(table), digest("ties", "ties", seed), np.uint64)
    user, item = table["user"].to_numpy(), table["item"].to_numpy()
    return mix(drawn, user_digests[user], item_digests[item], times.view(np.uint64))


def _codes(
    table: pa.Table, users: NDArray[np.int32], items: NDArray[np.int32], times: NDArray[np.int64], plan: Plan
) -> NDArray[np.int8]:
    if plan.rule == "given":
        return table["split"].fill_null(0).to_numpy()
    if plan.cutoffs:
        return split.temporal(times, plan.cutoffs)
    offsets = np.r_[0, np.flatnonzero(np.diff(users)) + 1, len(users)].astype(np.int64)
    if plan.rule == "leave-one-out":
        return split.leave_one_out(offsets, items >= 0)
    return split.ratio(offsets, items >= 0, *plan.shares[1:])


def _sessions(users: NDArray[np.int32], times: NDArray[np.int64], gap_s: int) -> NDArray[np.int32]:
    """Number each user's sessions from 0; one ends where more than ``gap_s`` seconds pass without an event."""
    changed = np.r_[True, users[1:] != users[:-1]]
    with np.errstate(over="ignore"):
        silent = np.r_[False, (times[1:] - times[:-1] > gap_s) & (times[:-1] != UNKNOWN_TIME)] & ~changed
    running = np.cumsum(silent)
    starts = np.flatnonzero(changed)
    return (running - np.repeat(running[starts], np.diff(np.r_[starts, len(users)]))).astype(np.int32)


def write_about_users(
    path: Path, shape: pa.Schema, rows: Buckets, ids: Ids, held_out: HeldOut, given: bool
) -> TableFile:
    """Write ``impressions.parquet`` or ``reviews.parquet``, sorted by user and time.

    A row belongs to the split of its time (no earlier than that of the user's events), and a review also to no earlier
    split than the event it is about. With a given split the row's own counts.
    """
    with TableFile(path, shape) as out:
        for bucket in rows.tables():
            table, users, items = ids.renumber(bucket)
            times = table["time"].fill_null(UNKNOWN_TIME).to_numpy()
            codes = held_out.of_times(users, times)
            if "text" in shape.names:
                codes = np.maximum(codes, held_out.of_pairs(users, items))
            own = table["split"].to_numpy(zero_copy_only=False).astype(np.float64)
            use = ~np.isnan(own) & (given | (times == UNKNOWN_TIME))
            codes[use] = own[use].astype(np.int8)
            columns = {name: table[name] for name in table.column_names} | {
                "user": users,
                "item": items,
                "split": codes,
            }
            out.write(pa.table(columns).take(pa.array(np.lexsort((times, users)))))
    return out


def settle_conversations(
    conversations: Iterable[dict[str, Any]], items: Keys, ids: NDArray[np.int32], plan: Plan
) -> Iterator[dict[str, Any]]:
    """Yield dialogues with item ids for keys and a split for each; an unknown item is left out of its turn.

    Without a split of its own a dialogue gets one at random, seeded, from its id.
    """
    ends = np.cumsum(plan.shares)
    for number, conversation in enumerate(conversations):
        name = str(conversation.get("id", number))
        turns = []
        for turn in conversation.get("turns", ()):
            known = ids[items.find([str(key) for key in turn.get("items") or ()])]
            turns.append({**turn, "items": [int(item) for item in known if item >= 0]})
        word = conversation.get("split")
        if word is None:
            code = int(np.searchsorted(ends, digest(name, "talk", plan.seed) / 2**64, side="right"))
        elif str(word).lower() in split.NAMES:
            code = split.NAMES[str(word).lower()]
        else:
            raise DataError(f"conversation {name!r}: got split {word!r}, expected train, valid or test")
        yield {**conversation, "id": name, "split": min(code, 2), "turns": turns}


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> list[int]:
    """Write one JSON object a line; return how many rows have split 0, 1 and 2."""
    counts = [0, 0, 0]
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts[row["split"]] += 1
    return counts
