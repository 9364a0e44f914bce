"""Numbers about items, and about a user's bond with an item: what a ranking prompt puts into words.

Only events of earlier splits are counted, so that no held-out event reaches a prompt. This module knows no words (the
data templates have them) and no model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m6rec.data.histories import Histories, Judgements, Split

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]

# An item is compared by its first labels only: films have few genres, and a matrix stays small.
MAX_LABELS = 8


@dataclass(frozen=True)
class StatisticsConfig:
    """What counts as a yes, and how far small counts are trusted."""

    threshold: float | None = None
    """Value from which an event is a yes, e.g. 4 of 5 stars; ``None`` = values do not decide. Changes results."""
    positive_verbs: tuple[str, ...] = ()
    """Verbs that are a yes; empty = all. Changes results."""
    smoothing: float = 10.0
    """How many events of average success every item and user starts with. Changes results."""


class ItemStatistics:
    """Popularity and success of items, and how often a user chose their category, brand or the item itself.

    Names and units of the numbers (NaN where nothing is known, and then there is nothing to say):

    - ``popularity``: percentile (0-100) of the item's number of events among all items.
    - ``positive_rate``: percentile (0-100) of the item's smoothed share of yes among the items that have events.
    - ``user_rate``: smoothed share of yes (0-100) among the user's events so far.
    - ``category_rate``: smoothed share of yes (0-100) among the user's events so far that share a category with it.
    - ``category_count``, ``brand_count``, ``item_count``: how many of the user's events so far share a category, share
      the brand, are the item itself.

    Args:
        histories: all events; only those of splits earlier than ``split`` are counted.
        records: each item's fields, of which ``category`` (``"a|b"`` is two labels; of ``"a > b"`` the last counts)
            and ``brand`` are read; empty = no categories and brands.
        config: what counts as a yes.
        split: what is going to be predicted; ``"train"`` and ``"valid"`` count training events alone.
        judged: training judgements that the success of items is counted from instead of events (shown but not taken is
            a no only there).

    Source: M6-Rec section 3 (candidate statistics in words: click-through rate of the item by percentile, how often
        the user clicked the category). Differs: no window of 14 days or two years, because public logs are short.
    """

    Config = StatisticsConfig

    def __init__(
        self,
        histories: Histories,
        records: Iterable[Mapping[str, Any]] = (),
        config: StatisticsConfig = StatisticsConfig(),
        split: Split = "train",
        judged: Judgements | None = None,
    ) -> None:
        self.config = config
        known = histories.before(split)
        self._category, self._brand = _labels(records, known.num_items)
        real = known.items >= 0
        self._events = np.bincount(known.items[real], minlength=known.num_items)
        self._popularity = _percentile(self._events, self._events)
        if judged is None:
            times = None if known.times is None else known.times[real]
            self._success = _Success(known.items[real], self.positive(known)[real], times, known.num_items, config)
        else:
            self._success = _Success(judged.items, judged.labels, None, known.num_items, config)

    def positive(self, histories: Histories) -> Floats:
        """Return ``[num_events]`` 1 for a yes, 0 for a no."""
        yes = np.ones(histories.num_events, dtype=bool)
        if self.config.threshold is not None and histories.values is not None:
            # An event without a value (a search, a click beside ratings) is no statement against the item.
            yes &= ~(histories.values < self.config.threshold)
        if self.config.positive_verbs and histories.verbs is not None:
            names = np.array([name in self.config.positive_verbs for name in histories.verb_names], dtype=bool)
            yes &= names[histories.verbs]
        return yes.astype(np.float64)

    def items(self, items: NDArray[np.integer]) -> dict[str, Floats]:
        """Return ``popularity`` and ``positive_rate`` of ``[n]`` item ids from everything that was counted."""
        return {"popularity": self._popularity[items], "positive_rate": self._success.percentile(items)}

    def pairs(self, pairs: Judgements, past_only: bool) -> dict[str, Floats]:
        """Return every number for every pair, from what the pair may see.

        Args:
            pairs: user, item, and how many of the user's events come before.
            past_only: ``True`` for training pairs, whose own label is among the counted events. Then an item's success
                is counted from what lies strictly before the user's last visible event, as it was on that day; where
                times are unknown, from everything but the pair's own label.

        Returns:
            Name -> ``[num_pairs]`` float64.

        Differs: leave-one-out alone would leave a trace: of two users who judged the same item, the one who said yes
            would always see the lower rate. So it is the fallback and not the rule.
        """
        numbers = self.items(pairs.items)
        if past_only and self._success.timed:
            numbers["positive_rate"] = self._success.percentile_before(pairs.items, _last_seen(pairs))
        elif past_only:
            numbers["positive_rate"] = self._success.percentile_without(pairs.items, pairs.labels)
        crossed = {name: np.zeros(len(pairs)) for name in CROSS_NAMES}
        positive = self.positive(pairs.history)
        order = np.argsort(pairs.users, kind="stable")
        bounds = np.flatnonzero(np.diff(pairs.users[order], prepend=-1))
        for rows in np.split(order, bounds[1:]) if len(order) else ():
            own = pairs.history.of(int(pairs.users[rows[0]]))
            seen = np.arange(own.stop - own.start) < pairs.lengths[rows, None]
            for name, column in self._cross(pairs.history.items[own], positive[own], seen, pairs.items[rows]).items():
                crossed[name][rows] = column
        return numbers | crossed

    def cross(self, events: Sequence[Mapping[str, Any]], candidate: Mapping[str, Any]) -> dict[str, float]:
        """Return the user's bond with a candidate from records alone: nobody has to be known.

        Args:
            events: the user's events so far, each with ``item`` (a record), ``value`` and ``verb`` where known.
            candidate: the item's fields; ``key`` tells whether an event was about this very item.

        Returns:
            The numbers of :data:`CROSS_NAMES`; equal to those of :meth:`pairs` for the same events.
        """
        items = [event.get("item") or {} for event in events]
        items = [{"title": item} if isinstance(item, str) else item for item in items]
        keys: dict[Any, int] = {candidate.get("key", object()): 0}
        ids = np.array([keys.setdefault(item.get("key", object()), len(keys)) if item else -1 for item in items])
        category, brand = _labels([candidate, *items], len(items) + 1)
        positive = np.array([self._says_yes(event) for event in events], dtype=np.float64)
        bond = _Bond(category[1:], brand[1:], ids.astype(np.int64), positive)
        seen = np.ones((1, len(items)), dtype=bool)
        numbers = bond.numbers(category[:1], brand[:1], np.zeros(1, np.int64), seen, self._prior, self.config.smoothing)
        return {name: float(column[0]) for name, column in numbers.items()}

    @property
    def _prior(self) -> float:
        return self._success.mean

    def _cross(self, events: Codes, positive: Floats, seen: NDArray[np.bool_], candidates: Codes) -> dict[str, Floats]:
        # An event without an item (-1) must not borrow the labels of the last one.
        real = (events >= 0)[:, None]
        category, brand = np.where(real, self._category[events], -1), np.where(real, self._brand[events], -1)
        bond = _Bond(category, brand, events.astype(np.int64), positive)
        rows = self._category[candidates], self._brand[candidates], candidates.astype(np.int64)
        return bond.numbers(*rows, seen, self._prior, self.config.smoothing)

    def _says_yes(self, event: Mapping[str, Any]) -> bool:
        value, threshold, verbs = event.get("value"), self.config.threshold, self.config.positive_verbs
        enough = threshold is None or value is None or not value < threshold
        return enough and (not verbs or "verb" not in event or event["verb"] in verbs)


CROSS_NAMES = ("user_rate", "category_rate", "category_count", "brand_count", "item_count")


@dataclass(frozen=True)
class _Bond:
    """One user's events, to be held against candidates.

    Args:
        category: ``[events, labels]`` codes, -1 = none.
        brand: ``[events, 1]`` codes.
        items: ``[events]`` item numbers, -1 = none.
        positive: ``[events]`` 0 or 1.
    """

    category: Codes
    brand: Codes
    items: NDArray[np.int64]
    positive: Floats

    def numbers(
        self,
        category: Codes,
        brand: Codes,
        items: NDArray[np.int64],
        seen: NDArray[np.bool_],
        prior: float,
        smoothing: float,
    ) -> dict[str, Floats]:
        """Return each number for ``[k]`` candidates; ``seen`` is ``[k, events]`` bool."""
        real = seen & (self.items >= 0)
        shared = _shared(category, self.category) * real
        known = 0.0 < prior < 1.0
        user_rate = (real @ self.positive + smoothing * prior) / (real.sum(axis=1) + smoothing)
        # A thin category falls back on the user's own rate, as a thin user falls back on everyone's.
        category_rate = (shared @ self.positive + smoothing * user_rate) / (shared.sum(axis=1) + smoothing)
        return {
            "user_rate": np.where(known & real.any(axis=1), 100 * user_rate, np.nan),
            "category_rate": np.where(known & shared.any(axis=1), 100 * category_rate, np.nan),
            "category_count": (shared > 0).sum(axis=1).astype(np.float64),
            "brand_count": ((_shared(brand, self.brand) > 0) & real).sum(axis=1).astype(np.float64),
            "item_count": ((items[:, None] == self.items) & real).sum(axis=1).astype(np.float64),
        }


class _Success:
    """Yes and no per item, in time order where times are known."""

    def __init__(
        self,
        items: Codes,
        labels: NDArray[np.floating],
        times: NDArray[np.int64] | None,
        num_items: int,
        config: StatisticsConfig,
    ) -> None:
        self.timed, self._smoothing = times is not None, config.smoothing
        self.mean = float(labels.mean()) if len(labels) else 0.5
        self._count: Floats = np.bincount(items, minlength=num_items).astype(np.float64)
        self._yes: Floats = np.bincount(items, weights=labels, minlength=num_items).astype(np.float64)
        self._grid = np.sort(self._rate(self._yes, self._count)[self._count > 0])
        if times is not None:
            # One sorted key (item, time) answers "how many before then" for all items with one search.
            self._moments, ranks = np.unique(times, return_inverse=True)
            keys = items.astype(np.int64) * (len(self._moments) + 1) + ranks
            order = np.argsort(keys, kind="stable")
            self._keys, self._running = keys[order], np.concatenate([[0.0], np.cumsum(labels[order])])

    def percentile(self, items: NDArray[np.integer]) -> Floats:
        return self._place(self._yes[items], self._count[items])

    def percentile_without(self, items: NDArray[np.integer], labels: NDArray[np.floating]) -> Floats:
        """Take the pair's own label out."""
        return self._place(self._yes[items] - labels, self._count[items] - 1)

    def percentile_before(self, items: NDArray[np.integer], times: Floats) -> Floats:
        """Count what lies strictly before ``times``."""
        width = len(self._moments) + 1
        start = np.searchsorted(self._keys, items.astype(np.int64) * width)
        rank = np.searchsorted(self._moments, times, side="left")
        end = np.searchsorted(self._keys, items.astype(np.int64) * width + rank)
        return self._place(self._running[end] - self._running[start], (end - start).astype(np.float64))

    def _place(self, yes: Floats, count: Floats) -> Floats:
        # Where every answer is the same, a rate says nothing.
        return np.where((count > 0) & (0.0 < self.mean < 1.0), _percentile(self._rate(yes, count), self._grid), np.nan)

    def _rate(self, yes: Floats, count: Floats) -> Floats:
        # Written around the mean, so that an item of average success has the same rate whatever its count is.
        return self.mean + (yes - self.mean * count) / (count + self._smoothing)


def _percentile(values: NDArray[Any], among: NDArray[Any]) -> Floats:
    """Return the share (0-100) of ``among`` that lies below each value, ties counted half.

    >>> _percentile(np.array([1, 2, 3]), np.array([1, 2, 2, 3])).tolist()
    [12.5, 50.0, 87.5]
    """
    ranked = np.sort(among)
    below, up_to = np.searchsorted(ranked, values, "left"), np.searchsorted(ranked, values, "right")
    return 50.0 * (below + up_to) / max(1, len(ranked))


def _shared(left: Codes, right: Codes) -> NDArray[np.int64]:
    """Return ``[k, n]``: how many codes the rows of ``[k, labels]`` and ``[n, labels]`` share; -1 is no code."""
    total = np.zeros((len(left), len(right)), dtype=np.int64)
    for column in left.T:
        total += ((column[:, None, None] == right[None]) & (column[:, None, None] >= 0)).sum(axis=2)
    return total


def _labels(records: Iterable[Mapping[str, Any]], num_rows: int) -> tuple[Codes, Codes]:
    """Return the codes of each record's categories and of its brand; codes mean something within one call only."""
    codes: dict[str, int] = {}
    categories, brands = [], []
    for record in records:
        text = record.get("category") or ""
        names = text.split("|") if isinstance(text, str) else [str(name) for name in text]
        leaves = [name.rpartition(">")[2].strip() for name in names]
        brand = str(record.get("brand") or "").strip()
        categories.append([codes.setdefault(f"category {name}", len(codes)) for name in leaves if name])
        brands.append([codes.setdefault(f"brand {brand}", len(codes))] if brand else [])
    return _table(categories, num_rows, MAX_LABELS), _table(brands, num_rows, 1)


def _table(labels: Sequence[Sequence[int]], num_rows: int, width: int) -> Codes:
    """Return ``[num_rows, labels]`` codes, -1 = none; a label that stands twice counts once."""
    unique = [list(dict.fromkeys(row))[:width] for row in labels]
    table = np.full((num_rows, max([1, *map(len, unique)])), -1, dtype=np.int32)
    for number, row in enumerate(unique):
        table[number, : len(row)] = row
    return table


def _last_seen(pairs: Judgements) -> Floats:
    """Return the time of the last event that each pair may see; minus infinity where it sees none."""
    places = pairs.history.offsets[pairs.users] + pairs.lengths - 1
    times = np.full(len(pairs), -np.inf)
    some = pairs.lengths > 0
    if pairs.history.times is not None:
        times[some] = pairs.history.times[places[some]]
    return times
