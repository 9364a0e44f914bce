"""Opt-in filters of a log: each removes events, says how many, and touches nothing unless it was asked for.

This module knows gathered buckets and codes; it knows no ids, splits and files of a dataset.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m6rec.data.buckets import Buckets
from m6rec.data.manifest import Filter

Deduplicate = Literal["none", "exact", "item"]


def drop_low_values(events: Buckets, min_value: float) -> None:
    """Remove events whose value is known and below ``min_value``."""
    events.rewrite(lambda table: table.filter(pc.fill_null(pc.greater_equal(table["value"], min_value), True)))


def drop_repeats(events: Buckets, how: Deduplicate) -> None:
    """Remove repeated events; of each group the earliest stays, of equal times the first in the file.

    Args:
        events: buckets by user.
        how: ``"exact"``: same user, item, time, verb and query. ``"item"``: same user and item (searches all stay).
    """

    def change(table: pa.Table) -> pa.Table:
        users, items = table["user"].to_numpy(), table["item"].to_numpy()
        times = table["time"].fill_null(np.iinfo(np.int64).min).to_numpy()
        columns = [users, items]
        if how == "exact":
            columns += [times, _codes(table["verb"]), _codes(table["query"])]
        order = np.lexsort((times, *columns))
        same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
        for column in columns:
            same &= column[order][1:] == column[order][:-1]
        repeated = np.zeros(len(order), dtype=np.bool_)
        repeated[order[1:]] = same
        if how == "item":
            repeated &= items >= 0
        return table.filter(pa.array(~repeated))

    events.rewrite(change)


def k_core(events: Buckets, num_users: int, num_items: int, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which users and items are left when all with fewer than ``k`` events of items go, again and again.

    Returns:
        ``[num_users]`` and ``[num_items]`` bool: the largest set in which every user and every item has ``k`` events.
    """
    users, items = np.ones(num_users, dtype=np.bool_), np.ones(num_items, dtype=np.bool_)
    while True:
        user_counts, item_counts = count_events(events, users, items)
        next_users, next_items = users & (user_counts >= k), items & (item_counts >= k)
        if (next_users == users).all() and (next_items == items).all():
            return users, items
        users, items = next_users, next_items


def count_events(
    events: Buckets, users: NDArray[np.bool_], items: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the events of items of each user and of each item, among those whose user and item are both kept."""
    user_counts, item_counts = np.zeros(len(users), np.int64), np.zeros(len(items), np.int64)
    for table in events.tables(["user", "item"]):
        user, item = table["user"].to_numpy(), table["item"].to_numpy()
        # items[-1] is some item, but a search is left out before it counts
        keep = users[user] & (item >= 0) & (items[item] if len(items) else False)
        user_counts += np.bincount(user[keep], minlength=len(users))
        item_counts += np.bincount(item[keep], minlength=len(items))
    return user_counts, item_counts


def count_kept(events: Buckets, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> int:
    """Count all events, searches included, whose user (and item, where there is one) is kept."""
    kept = 0
    for table in events.tables(["user", "item"]):
        user, item = table["user"].to_numpy(), table["item"].to_numpy()
        kept += int((users[user] & ((item < 0) | np.r_[items, False][item])).sum())
    return kept


def report(
    name: str, setting: object, run: Callable[[], None], events: Buckets, num_users: int, num_items: int
) -> Filter:
    """Run a filter that rewrites ``events`` and say what it removed."""
    before = events.num_rows
    run()
    users, items = count_events(events, np.ones(num_users, np.bool_), np.ones(num_items, np.bool_))
    return Filter(name, str(setting), before - events.num_rows, int((users > 0).sum()), int((items > 0).sum()))


def _codes(column: pa.ChunkedArray) -> NDArray[np.int32]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
