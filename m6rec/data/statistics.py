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
from m6rec.data.tally import Floats, Integers, Tally

Codes = NDArray[np.int32]
Record = Mapping[str, Any]

ITEM_NAMES = ("popularity", "positive_rate")
CROSS_NAMES = ("user_rate", "category_rate", "category_count", "brand_count", "item_count")
# An item is compared by its first labels only: films have few genres, and a table stays small.
MAX_LABELS = 8


@dataclass(frozen=True)
class StatisticsConfig:
    """What counts as a yes, and how far small counts are trusted."""

    threshold: float | None = None
    """Value from which an event is a yes, e.g. 4 of 5 stars; an event without a value says nothing. Changes results."""
    positive_verbs: tuple[str, ...] = ()
    """Verbs that are a yes, every other one a no; empty = the verb does not decide. Changes results."""
    smoothing: float = 10.0
    """How many average events every item and user starts with. Changes results."""


class ItemStatistics:
    """Popularity and success of items, and how often a user chose their category, brand or the item itself.

    Names and units of the numbers (NaN where nothing is known, and then there is nothing to say):

    - ``popularity``: percentile (0-100) of the item's share of all events, among all items.
    - ``positive_rate``: percentile (0-100) of the item's smoothed share of yes, among the items with answers.
    - ``user_rate``: smoothed share of yes (0-100) in the user's answers so far.
    - ``category_rate``: smoothed share of yes (0-100) in the user's answers so far that share a category with it.
    - ``category_count``, ``brand_count``, ``item_count``: how many of the user's events so far share a category, share
      the brand, are the item itself.

    Args:
        histories: all events; only those of splits earlier than ``split`` are counted.
        records: each item's fields, of which ``category`` (``"a|b"`` is two labels; of ``"a > b"`` the last counts)
            and ``brand`` are read; empty = no categories and brands.
        config: what counts as a yes.
        split: what is going to be predicted; ``"train"`` and ``"valid"`` count training events alone.
        judged: training judgements from which the success of items is counted instead of from events: only there is
            what was shown and not taken a no.

    Source: M6-Rec section 3 (candidate statistics in words: click-through rate of the item by percentile, how often
        the user clicked the category). Differs: no window of 14 days or two years, because public logs are short.
    """

    Config = StatisticsConfig

    def __init__(
        self,
        histories: Histories,
        records: Iterable[Record] = (),
        config: StatisticsConfig = StatisticsConfig(),
        split: Split = "train",
        judged: Judgements | None = None,
    ) -> None:
        self.config = config
        known = histories.before(split)
        self._category, self._brand = _labels(records, known.num_items)
        answers = _answers(known, config)
        self._popularity = _tally(known, np.ones(known.num_events), known.items >= 0)
        if judged is None:
            self._success = _tally(known, answers, (known.items >= 0) & ~np.isnan(answers))
        else:
            labels = judged.labels.astype(np.float64)
            self._success = Tally(judged.items, judged.users, labels, None, known.num_items)
        self._mean = self._success.mean
        counted = self._success.count > 0
        self._rates = self._rate(self._success.yes[counted], self._success.count[counted])
        self._shares = self._popularity.count / max(1.0, self._popularity.count.sum())

    def items(self, items: Integers) -> dict[str, Floats]:
        """Return :data:`ITEM_NAMES` of ``[n]`` item ids from everything that was counted."""
        return self._numbers(self._popularity.all(items), self._success.all(items))

    def pairs(self, pairs: Judgements, past_only: bool) -> dict[str, Floats]:
        """Return every number for every pair, from what the pair may see.

        Args:
            pairs: user, item, and how many of the user's events come before.
            past_only: ``True`` for training pairs, whose own event is among the counted ones. Then items are counted
                as they stood strictly before the user's last visible event; where times are unknown, from everything
                but the user's own events with the item. ``False`` for held-out pairs.

        Returns:
            Name -> ``[num_pairs]`` float64.

        Differs: leave-one-out is only the fallback, because it leaves a trace: of two users who judged one item, the
            one who said yes always sees the lower rate.
        """
        numbers = self.items(pairs.items)
        if past_only:
            numbers = self._numbers(self._known(self._popularity, pairs), self._known(self._success, pairs))
        crossed = {name: np.zeros(len(pairs)) for name in CROSS_NAMES}
        answers = _answers(pairs.history, self.config)
        order = np.argsort(pairs.users, kind="stable")
        bounds = np.flatnonzero(np.diff(pairs.users[order], prepend=-1))
        for rows in np.split(order, bounds[1:]) if len(order) else ():
            own = pairs.history.of(int(pairs.users[rows[0]]))
            bond = self._bond(pairs.history.items[own], answers[own])
            candidates = pairs.items[rows]
            seen = np.arange(own.stop - own.start) < pairs.lengths[rows, None]
            columns = bond.numbers(
                self._category[candidates], self._brand[candidates], candidates, seen, self.config.smoothing
            )
            for name, column in columns.items():
                crossed[name][rows] = column
        return numbers | crossed

    @staticmethod
    def cross_of(
        events: Sequence[Record], candidates: Sequence[Record], config: StatisticsConfig = StatisticsConfig()
    ) -> dict[str, Floats]:
        """Return a user's bond with candidates from records alone: neither the user nor any item has to be known.

        Args:
            events: the user's events so far, each with ``item`` (a record), ``value`` and ``verb`` where known.
            candidates: the items' fields; ``key``, or else the title, tells whether two records are the same item.
            config: as in training.

        Returns:
            :data:`CROSS_NAMES` -> ``[num_candidates]``; equal to :meth:`pairs` for the same events.
        """
        records = [event.get("item") or {} for event in events]
        records = [*candidates, *({"title": item} if isinstance(item, str) else item for item in records)]
        category, brand = _labels(records, len(records))
        names = [record.get("key") or record.get("title") for record in records]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names)) if name is not None}
        # A record without a name is an item of its own; an event without a record is none.
        ids = np.array([numbers.get(name, len(names) + row) for row, name in enumerate(names)], dtype=np.int64)
        size = len(candidates)
        ids[size:] = np.where([bool(record) for record in records[size:]], ids[size:], -1)
        bond = _Bond(category[size:], brand[size:], ids[size:], np.array([_answer(event, config) for event in events]))
        seen = np.ones((size, len(events)), dtype=bool)
        return bond.numbers(category[:size], brand[:size], ids[:size], seen, config.smoothing)

    def _known(self, tally: Tally, pairs: Judgements) -> tuple[Floats, Floats, Floats]:
        if tally.timed:
            return tally.before(pairs.items, _last_seen(pairs))
        return tally.without(pairs.items, pairs.users)

    def _numbers(
        self, popularity: tuple[Floats, Floats, Floats], success: tuple[Floats, Floats, Floats]
    ) -> dict[str, Floats]:
        _, count, total = popularity
        share = _percentile(count / np.maximum(1.0, total), self._shares)
        yes, answers, _ = success
        # Where every answer is the same, a rate says nothing.
        known = (answers > 0) & (0.0 < self._mean < 1.0)
        return {
            "popularity": np.where(total > 0, share, np.nan),
            "positive_rate": np.where(known, _percentile(self._rate(yes, answers), self._rates), np.nan),
        }

    def _rate(self, yes: Floats, count: Floats) -> Floats:
        # Written around the mean, so that an item of average success has the same rate whatever its count is.
        return self._mean + (yes - self._mean * count) / (count + self.config.smoothing)

    def _bond(self, items: Codes, answers: Floats) -> "_Bond":
        # An event without an item (-1) must not borrow the labels of the last one.
        real = (items >= 0)[:, None]
        return _Bond(np.where(real, self._category[items], -1), np.where(real, self._brand[items], -1), items, answers)


@dataclass(frozen=True)
class _Bond:
    """One user's events, to be held against candidates.

    Args:
        category: ``[events, labels]`` codes, -1 = none.
        brand: ``[events, 1]`` codes, -1 = none.
        items: ``[events]`` item numbers, -1 = none.
        answers: ``[events]`` 1 = yes, 0 = no, NaN = says nothing.
    """

    category: Codes
    brand: Codes
    items: Integers
    answers: Floats

    def numbers(
        self, category: Codes, brand: Codes, items: Integers, seen: NDArray[np.bool_], smoothing: float
    ) -> dict[str, Floats]:
        """Return :data:`CROSS_NAMES` for ``[k]`` candidates; ``seen`` is ``[k, events]`` bool."""
        seen = seen & (self.items >= 0)
        answered, yes = seen & ~np.isnan(self.answers), np.nan_to_num(self.answers)
        shared = _shared(category, self.category) * seen
        weight, same_brand = shared * answered, _shared(brand, self.brand) > 0
        user_rate = (answered @ yes + 0.5 * smoothing) / (answered.sum(axis=1) + smoothing)
        # A thin category falls back on the user's own rate, as a thin user falls back on one half.
        category_rate = (weight @ yes + smoothing * user_rate) / (weight.sum(axis=1) + smoothing)
        return {
            "user_rate": np.where(answered.any(axis=1), 100 * user_rate, np.nan),
            "category_rate": np.where(weight.any(axis=1), 100 * category_rate, np.nan),
            "category_count": np.where((category >= 0).any(axis=1), (shared > 0).sum(axis=1), np.nan),
            "brand_count": np.where(brand[:, 0] >= 0, (same_brand & seen).sum(axis=1), np.nan),
            "item_count": ((items[:, None] == self.items) & seen).sum(axis=1).astype(np.float64),
        }


def _answers(histories: Histories, config: StatisticsConfig) -> Floats:
    """Return ``[num_events]`` 1 for a yes, 0 for a no, NaN for an event that says nothing."""
    answers = np.full(histories.num_events, np.nan)
    if config.positive_verbs:
        # The last entry is for events without a verb (-1).
        yes = np.array([*(name in config.positive_verbs for name in histories.verb_names), False])
        answers = np.zeros(histories.num_events) if histories.verbs is None else yes[histories.verbs].astype(np.float64)
    if config.threshold is not None and histories.values is not None:
        enough = (histories.values >= config.threshold) & (answers != 0.0)
        answers = np.where(np.isnan(histories.values), answers, enough)
    return answers


def _answer(event: Record, config: StatisticsConfig) -> float:
    """Return what one event record says; see :func:`_answers`."""
    verb = "" if event.get("verb") is None else str(event["verb"])
    value = event.get("value")
    log = Histories(
        offsets=np.array([0, 1]),
        items=np.zeros(1, np.int32),
        splits=np.zeros(1, np.int8),
        num_items=1,
        values=np.array([np.nan if value is None else value], np.float32),
        verbs=np.zeros(1, np.int16),
        verb_names=(verb,),
    )
    return float(_answers(log, config)[0])


def _tally(known: Histories, answers: Floats, chosen: NDArray[np.bool_]) -> Tally:
    times = None if known.times is None else known.times[chosen]
    return Tally(known.items[chosen], known.users[chosen], answers[chosen], times, known.num_items)


def _percentile(values: Floats, among: Floats) -> Floats:
    """Return the share (0-100) of ``among`` that lies below each value, ties counted half.

    >>> _percentile(np.array([1, 2, 3]), np.array([1, 2, 2, 3])).tolist()
    [12.5, 50.0, 87.5]
    """
    ranked = np.sort(among)
    below, up_to = np.searchsorted(ranked, values, "left"), np.searchsorted(ranked, values, "right")
    return 50.0 * (below + up_to) / max(1, len(ranked))


def _shared(left: Codes, right: Codes) -> NDArray[np.float32]:
    """Return ``[k, n]``: how many codes the rows of ``[k, labels]`` and ``[n, labels]`` share; -1 is no code."""
    # One column a label that the right side has: a matrix product is far faster than comparing every two labels.
    labels = np.unique(right[right >= 0])
    with np.errstate(
        invalid="ignore"
    ):  # some kernels compute beyond the ends of odd shapes, and warn of what they find
        return _one_hot(left, labels) @ _one_hot(right, labels).T


def _one_hot(codes: Codes, labels: Codes) -> NDArray[np.float32]:
    row, column = np.nonzero(np.isin(codes, labels))
    hot = np.zeros((len(codes), len(labels)), dtype=np.float32)
    hot[row, np.searchsorted(labels, codes[row, column])] = 1.0
    return hot


def _labels(records: Iterable[Record], num_rows: int) -> tuple[Codes, Codes]:
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
    times, some = np.full(len(pairs), -np.inf), pairs.lengths > 0
    if pairs.history.times is not None:
        times[some] = pairs.history.times[places[some]]
    return times
